"""A lost or damaged catalogue comes back from the files, and a whole one keeps what it alone knows."""

import os
import random
import shutil
import sqlite3
from pathlib import Path

import pytest
from made_runs import files_of, flip, known, made_recipe, names_of

from tracin_core.errors import WorkspaceError
from tracin_core.records import maintenance
from tracin_core.records.catalogue import catalogue_damage
from tracin_core.records.maintenance import collect_garbage, rebuild_catalogue, verify
from tracin_core.records.workspace import open_workspace


def harmed(path: Path, chance: random.Random) -> None:
    """The catalogue is deleted, cut off, or some of its bytes are overwritten."""
    size = path.stat().st_size
    kind = chance.choice(("deleted", "cut off", "overwritten", "overwritten", "zeroed"))
    print(kind)
    if kind == "deleted":
        path.unlink()
    elif kind == "cut off":
        os.truncate(path, chance.randrange(size))
    else:
        raw = bytearray(path.read_bytes())
        start, length = chance.randrange(size), chance.choice((1, 16, 500, 5000))
        piece = bytes(length) if kind == "zeroed" else chance.randbytes(length)
        raw[start : start + length] = piece[: size - start]
        path.write_bytes(raw)


def catalogues_come_back(original: Path, tmp_path: Path, times: int) -> None:
    expected, files = known(original), files_of(original)
    for time_ in range(times):
        seed = random.SystemRandom().randrange(2**32)
        print("seed", seed)
        root = Path(shutil.copytree(original, tmp_path / f"workspace-{time_}"))
        harmed(root / "tracin.sqlite3", random.Random(seed))
        rebuild_catalogue(root)
        assert known(root) == expected
        assert files_of(root) == files
        assert catalogue_damage(root / "tracin.sqlite3") == ""
        assert verify(root).damages == []
        shutil.rmtree(root)


def test_a_lost_or_damaged_catalogue_comes_back_from_the_files(original: Path, tmp_path: Path) -> None:
    catalogues_come_back(original, tmp_path, 4)


@pytest.mark.slow
def test_twenty_lost_or_damaged_catalogues_come_back_from_the_files(original: Path, tmp_path: Path) -> None:
    catalogues_come_back(original, tmp_path, 20)


def test_a_damaged_catalogue_is_moved_aside(root: Path) -> None:
    path = root / "tracin.sqlite3"
    path.write_bytes(b"no database" * 1000)
    aside = rebuild_catalogue(root).aside
    assert aside is not None
    assert aside.read_bytes() == b"no database" * 1000
    assert not list(root.glob(".*.partial"))
    path.write_bytes(b"")
    assert names_of(verify(root).damages) == {"tracin.sqlite3"}
    rebuild_catalogue(root)
    assert verify(root).damages == []


def test_a_journal_does_not_stay_beside_a_new_file(root: Path) -> None:
    """SQLite would play it back into that."""
    path = root / "tracin.sqlite3"
    path.with_name("tracin.sqlite3-journal").write_bytes(b"a journal")
    aside = maintenance.set_aside(path)
    assert aside is not None
    assert aside.with_name(f"{aside.name}-journal").read_bytes() == b"a journal"
    assert not path.with_name("tracin.sqlite3-journal").exists()


def test_an_empty_catalogue_made_by_somebody_is_filled(original: Path, root: Path) -> None:
    """Whoever opens a workspace whose catalogue was deleted gets a new one."""
    (root / "tracin.sqlite3").unlink()
    assert open_workspace(root).runs().empty
    assert rebuild_catalogue(root).aside is None
    assert known(root) == known(original)
    first = open_workspace(root).runs().iloc[0]
    assert (first["name"], first["state"], first["created"]) == ("second", "done", 1e9 + 1)


def test_a_whole_catalogue_keeps_what_it_alone_knows(root: Path) -> None:
    place = open_workspace(root)
    place.register_run("unfinished00", made_recipe("unfinished"))
    with place.catalogue.transaction() as connection:
        connection.execute(
            "INSERT INTO job (id, kind, state, title, request, request_digest, created, position) "
            "VALUES ('j', 'demo', 'failed', 't', '{}', 'd', 1.0, 1)"
        )
    before = known(root)
    rebuilt = rebuild_catalogue(root)
    assert (known(root), rebuilt.aside, rebuilt.dropped) == (before, None, [])
    assert len(place.catalogue.read("SELECT 1 FROM job")) == 1
    assert place.catalogue.read("SELECT DISTINCT seconds FROM block")[0][0] == 0.5
    shutil.rmtree(sorted(root.glob("runs/*"))[0])
    assert len(rebuild_catalogue(root).dropped) == 1
    assert set(place.runs()["state"]) == {"done", "computing"}


@pytest.mark.parametrize(
    "harm", ["file = file || 'x'", "created = created + 1", "run_id = 'x'", "who = 'x', why = 'x', entries = 9"]
)
def test_a_decision_with_a_damaged_field_is_the_same_decision(original: Path, root: Path, harm: str) -> None:
    with open_workspace(root).catalogue.transaction() as connection:
        connection.execute(f"UPDATE exclusion SET {harm}")
    rebuild_catalogue(root)
    assert known(root) == known(original)


def test_damaged_files_are_left_out_and_named(root: Path) -> None:
    run = sorted(root.glob("runs/*/run.json"))[0]
    text = run.read_text()
    run.write_text(text.replace('"margin": 1.0', '"margin": 7.0'))  # readable, but not what was written
    block = sorted(root.glob("kernels/*/*.f32"))[0]
    flip(block, 3)
    decision = sorted(root.glob("exports/*/*.json"))[0]
    decision.write_text("{}")
    (root / "tracin.sqlite3").unlink()
    rebuilt = rebuild_catalogue(root)
    assert names_of(rebuilt.damages) == {path.relative_to(root).as_posix() for path in (run, block, decision)}
    assert (rebuilt.runs, rebuilt.decisions) == (1, 1)


def test_blocks_of_a_run_that_was_not_finished_are_known_again(original: Path, root: Path) -> None:
    for path in root.glob("runs/*"):
        shutil.rmtree(path)
    (root / "tracin.sqlite3").unlink()
    assert rebuild_catalogue(root).damages == []
    assert known(root)["block"] == known(original)["block"]


def test_nothing_is_touched_while_a_worker_is_alive(root: Path) -> None:
    place = open_workspace(root)
    with place.queue.worker_lock():
        for act in (rebuild_catalogue, collect_garbage):
            with pytest.raises(WorkspaceError, match="A worker serves"):
                act(root)


def test_a_newer_catalogue_is_left_alone(root: Path) -> None:
    with sqlite3.connect(root / "tracin.sqlite3") as connection:
        connection.execute("CREATE TABLE later (x)")
        connection.execute("PRAGMA user_version = 99")
    before = (root / "tracin.sqlite3").read_bytes()
    with pytest.raises(WorkspaceError, match="newer version"):
        rebuild_catalogue(root)
    assert (root / "tracin.sqlite3").read_bytes() == before
