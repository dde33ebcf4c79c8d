"""docs/store-format.md tells of every file of a real workspace; each is read as it says, and comes back as it says."""

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import fields
from fnmatch import fnmatch
from pathlib import Path

import crc32c
import lab
import numpy as np
import pytest
from test_docs_complete import run_blocks, sections_of, table_of, text_of

from tracin_core.records.maintenance import rebuild_catalogue
from tracin_core.records.manifest import Manifest
from tracin_core.records.verdicts import Decision
from tracin_core.records.workspace import FOLDERS, Workspace, open_workspace


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def place(home: Path, shelf: lab.Shelf) -> Iterator[Workspace]:
    """A workspace with a run of three checkpoints, a list, a verdict and a saved view."""
    made = shelf.studio(home / "workspace")
    here, run = made.place, made.run
    chosen = run.view().exclusions(threshold=-0.1, min_occurrences=1, max_exclusions=3)
    here.export_exclusions(run, chosen, {"threshold": -0.1, "pair_mode": "ranking_pair"})
    here.decide(run, (run.train_pairs["id1"][0], run.train_pairs["id2"][0]), "keep", who="Mei", why="sounds right")
    yield here
    lab.stop_worker(here)


def patterns() -> list[str]:
    """What the table of places names, as patterns of paths."""
    text = text_of("store-format.md").partition("\n## ")[0]
    lines = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    found = []
    for line in lines:
        first, *further = re.findall(r"`([^`]+)`", line)
        stem, folder = first.rpartition(".")[0], first.rpartition("/")[0]
        found += [first, *(f"{stem}{name}" if name.startswith(".") else f"{folder}/{name}" for name in further)]
    return [re.sub(r"<[^>]+>", "*", name) + ("*" if name.endswith("/") else "") for name in found]


def test_every_file_of_a_workspace_is_in_the_table(place: Workspace) -> None:
    known = [*patterns(), ".*.lock"]
    files = [path.relative_to(place.root).as_posix() for path in place.root.rglob("*") if path.is_file()]
    assert len(files) > 50
    assert [name for name in files if not any(fnmatch(name, pattern) for pattern in known)] == []
    used = {pattern for pattern in known for name in files if fnmatch(name, pattern)}
    assert {"tracin.sqlite3", "kernels/*/*", "runs/*/verdicts.jsonl", "exports/*/*", "checkpoints/known/*.json"} <= used
    assert {name for name in FOLDERS if not any(pattern.startswith(f"{name}/") for pattern in known)} == set()


def test_a_block_is_read_as_the_document_reads_it(place: Workspace, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same numbers as the product has; name, checksum and description as they are said to be."""
    monkeypatch.chdir(home)
    names = run_blocks("store-format.md")
    run = place.run(names["run"]["id"])
    expected = run.view(checkpoints=[2]).kernels.test_train
    assert names["kernel"].shape == (12, 18)
    np.testing.assert_allclose(names["kernel"], np.asarray(expected).reshape(-1, 12, 18)[-1], rtol=1e-5)
    assert names["checksum"] == crc32c.crc32c(names["raw"][:-4])
    told = json.loads((place.root / "kernels" / names["group"] / "group.json").read_text())
    canonical = json.dumps(told, sort_keys=True, separators=(",", ":"))
    assert hashlib.sha256(canonical.encode()).hexdigest()[:32] == names["group"]
    digests = run.samples.set_index("id")["digest"]
    joined = "\n".join(digests[name] for name in names["test"]["ids"])
    assert hashlib.sha256(joined.encode()).hexdigest()[:32] == names["test"]["digest"]
    assert told["layers"] == names["run"]["layers"]


def test_every_key_of_a_run_and_of_a_verdict_is_told(place: Workspace) -> None:
    section = sections_of(text_of("store-format.md"), 2)["A run"]
    assert set(table_of(section)) == {field.name for field in fields(Manifest)}
    line = json.loads(next(place.root.glob("runs/*/verdicts.jsonl")).read_text().splitlines()[0])
    (told,) = re.findall(r"`verdicts.jsonl` has .*?\n\n", section, re.DOTALL)
    assert set(line) == {"crc32c", *(field.name for field in fields(Decision))}
    assert [name for name in line if f"`{name}`" not in told] == []


def test_what_may_be_deleted_comes_back(place: Workspace, home: Path) -> None:
    """Without catalogue, weights, inputs, previews and blocks: the same runs and, computed again, the same bytes."""
    before = contents(place.root / "kernels")
    runs = place.runs()["id"].tolist()
    recipe = place.run(runs[0]).recipe
    end_worker(place)
    (place.root / "tracin.sqlite3").unlink()
    for folder in ("checkpoints", "kernels", "datasets"):
        for path in list((place.root / folder).rglob("*")):
            if path.is_file() and not path.name.startswith("split-"):
                path.unlink()
    rebuild_catalogue(place.root)
    again = open_workspace(place.root)
    assert again.runs()["id"].tolist() == runs
    assert not again.is_done(runs[0])
    again.compute(recipe)
    assert contents(place.root / "kernels") == before
    assert list(place.root.glob("datasets/*/inputs/*.safetensors"))
    assert list(place.root.glob("checkpoints/*.safetensors"))
    assert list(place.root.glob("datasets/*/previews/*.png"))
    shutil.rmtree(place.root / "runs" / runs[0])
    end_worker(again)
    rebuild_catalogue(place.root)
    assert open_workspace(place.root).runs().empty


def end_worker(place: Workspace) -> None:
    """The workspace's worker has ended, and let its lock go."""
    lab.stop_worker(place)
    with place.queue.worker_lock().acquire(timeout=30):
        pass


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.f32")}
