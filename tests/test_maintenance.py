"""Every damage is named, the catalogue comes back from the files, nothing that is needed is removed, and exports read as the run."""

import hashlib
import io
import itertools
import os
import random
import shutil
import sqlite3
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import lab
import numpy as np
import pandas as pd
import pytest
import safetensors.numpy
import soundfile
import xarray
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tracin_core import cli
from tracin_core.data.files import write_json, write_text, write_whole
from tracin_core.data.readers import sample_digest
from tracin_core.data.seals import (
    json_damage,
    png_damage,
    sealed_text,
    sealed_wav,
    text_damage,
    unsealed_text,
    wav_damage,
    write_sealed,
)
from tracin_core.errors import DamagedBlockError, InputError, WorkspaceError
from tracin_core.recipe import Recipe
from tracin_core.records import doctor, maintenance, processes
from tracin_core.records.catalogue import Catalogue, catalogue_damage
from tracin_core.records.datasets import dataset_key, keep_inputs, sealed_chunks, stored_split
from tracin_core.records.maintenance import SEAL, collect_garbage, rebuild_catalogue, verify
from tracin_core.records.runs import Chunk, Manifest, Run, chunk_digest
from tracin_core.records.store import BlockKey, BlockStore, Mosaic, block_damage, digest_of
from tracin_core.records.workspace import Workspace, open_workspace

MANUAL = Path(__file__).resolve().parents[1] / "docs" / "command-line.md"
VERBS = ("export-zarr", "verify", "gc", "rebuild-catalogue", "doctor")
LAYERS = ("features", "head")
SIZES = {"train": (5, 3), "validation": (4, 2)}  # samples of each chunk: data that came in two deliveries
LABELS = 3


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (9, 5), "red").save(buffer, format="PNG")
    return buffer.getvalue()


def sound() -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.sin(np.arange(40)), 48_000, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


PICTURE, SOUND, WORDS = picture(), sound(), "height 1.8 m\nwidth 40 cm\n"


def made_recipe(name: str = "small", margin: float = 1.0) -> Recipe:
    return Recipe.from_dict(
        {
            "name": name,
            "data": {"root": "/nowhere", "material": "box", "frequency": "1000hz"},
            "task": {"loss": "margin", "margin": margin},
            "checkpoints": {"folder": "/nowhere"},
            "engine": {"threads": 1},
        }
    )


def made_run(place: Workspace, name: str = "small", *, seed: int = 0, margin: float = 1.0) -> Run:
    """A finished run of random numbers, with every file that a worker leaves; its inputs and weights follow from the seed."""
    numbers = np.random.default_rng(seed)
    recipe = made_recipe(name, margin)
    dataset = dataset_key(recipe, place.root / "plugins")
    folder = place.root / "datasets" / dataset
    rows, chunks = [], {}
    for side, sizes in SIZES.items():
        chunks[side] = ()
        for size in sizes:
            inputs = numbers.normal(size=(size, 1, 3, 4)).astype(np.float32)
            digests = [sample_digest(sample) for sample in inputs]
            ids = tuple(f"{side}_{seed}_{len(rows) + k}" for k in range(size))
            chunk = Chunk(ids, chunk_digest(digests))
            keep_inputs(folder, chunk, inputs)
            chunks[side] += (chunk,)
            rows += [
                {"id": i, "label": k % LABELS, "angle": 36 * (k % LABELS), "split": side, "digest": d, "sequence": 0}
                for k, (i, d) in enumerate(zip(ids, digests, strict=True))
            ]
    samples = pd.DataFrame(rows).assign(material="box", frequency="1000hz", path=lambda table: table["id"] + ".wav")
    write_sealed(folder / f"split-{seed}.json", dict(zip(samples["id"], samples["split"], strict=True)))
    write_sealed(folder / f"chunks-{seed}.json", {side: [chunk.ids for chunk in several] for side, several in chunks.items()})
    for digest in samples["digest"]:
        write_whole(folder / "previews" / f"{digest}.png", [PICTURE])
        write_whole(folder / "previews" / f"{digest}.wav", [sealed_wav(SOUND)])
        write_text(folder / "previews" / f"{digest}.txt", sealed_text(WORDS))
    checkpoints, groups = [], []
    for epoch in (1, 2):
        weights = safetensors.numpy.save({"w": numbers.normal(size=(3, 5)).astype(np.float32)})
        digest = hashlib.sha256(weights).hexdigest()
        (place.root / "checkpoints" / f"{digest}.safetensors").write_bytes(weights)
        settings = {"model": recipe.model.model_dump(mode="json"), "batch_size": 32, "threads": 1, "device": "cpu"}
        definition = {"weights": digest, "layers": list(LAYERS), "cotangent": None, **settings}
        place.store.describe_group(digest_of(definition), definition)
        checkpoints.append({"epoch": epoch, "digest": digest, "source": f"model_epoch_{epoch}.pt", "arguments": {}})
        groups.append(digest_of(definition))
    run_id = digest_of([name, seed, margin])[:12]
    manifest = Manifest(
        id=run_id,
        recipe=recipe.to_dict(),
        created=1e9 + seed,
        layers=LAYERS,
        checkpoints=tuple(checkpoints),
        groups=tuple(groups),
        chunks=chunks,
        loss={"name": "margin", "margin": margin},
        dataset=dataset,
    )
    place.register_run(run_id, recipe)
    for key in (key for group in groups for key in manifest.kernel_keys(group)):
        write_block(place, key)
    manifest.write(place.root / "runs" / run_id, samples)
    place.register_run(run_id, recipe, state="done")
    return place.run(run_id)


def write_block(place: Workspace, key: BlockKey) -> None:
    """Random numbers that follow from the key, symmetric where left is right; recorded."""
    values = np.random.default_rng(int(digest_of(key.name)[:8], 16)).normal(size=key.shape).astype(np.float32)
    if key.left == key.right:
        values = values + values.transpose(0, 2, 1)
    crc = place.store.write(key, values)
    with place.catalogue.transaction() as connection:
        connection.execute(
            "INSERT OR REPLACE INTO block (name, shape, crc, seconds, created) VALUES (?, ?, ?, 0.5, 1.0)",
            (key.name, str(list(key.shape)), crc),
        )


def decide(place: Workspace, run: Run) -> None:
    """A list of two pairs is exported, by somebody for a reason."""
    chosen = pd.DataFrame({"id": run.train_pairs["id"][:2], "id1": run.train_pairs["id1"][:2], "id2": run.train_pairs["id2"][:2]})
    rule = {"threshold": -5.0, "min_occurrences": 3, "pair_mode": "ranking_pair"}
    place.export_exclusions(run, chosen, rule, who="Ada", why="hiss in take 3")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with two runs of two data deliveries, and a decision about each; copied by those who change it."""
    place = open_workspace(tmp_path_factory.mktemp("store") / "workspace")
    for seed, name in enumerate(("first", "second")):
        decide(place, made_run(place, name, seed=seed))
    return place.root


@pytest.fixture
def root(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "workspace"))


def names_of(damages: list[maintenance.Damage]) -> set[str]:
    return {damage.file for damage in damages}


def flip(path: Path, bit: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[bit // 8] ^= 1 << bit % 8
    path.write_bytes(raw)


# ---- verify -----------------------------------------------------------------------------------------------------------------


def checked_files(root: Path) -> list[Path]:
    patterns = ("kernels/*/*", "datasets/*/*.json", "datasets/*/*/*", "checkpoints/*", "runs/*/run.json", "runs/*/samples.csv")
    return sorted(path for pattern in patterns for path in root.glob(pattern))


def test_a_store_as_it_was_written_has_no_damage(root: Path) -> None:
    found = verify(root)
    assert (found.damages, found.unsealed) == ([], [])
    per_run = 2 * (4 + 2 * 3 + 4)  # two checkpoints: outputs, two triangles, a rectangle, of two chunks a side
    samples = 2 * sum(map(sum, SIZES.values()))
    kept = {"splits": 2, "lists of chunks": 2, "inputs": 8, "previews": 3 * samples, "checkpoints": 4}
    assert found.files == {"blocks": 2 * per_run, "groups": 4, **kept, "runs": 2, "catalogue": 1}


def flips_are_reported(root: Path, flips: int) -> None:
    """Bits of one file after the other, wherever in the store, are turned and turned back."""
    seed = random.SystemRandom().randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    files = checked_files(root)
    for _ in range(flips):
        (path,) = chance.choices(files, weights=[file.stat().st_size for file in files])
        bit = chance.randrange(8 * path.stat().st_size)
        flip(path, bit)
        assert path.relative_to(root).as_posix() in names_of(verify(root).damages), f"bit {bit}"
        flip(path, bit)
    assert verify(root).damages == []


def test_flipped_bits_are_reported_with_the_files_name(root: Path) -> None:
    flips_are_reported(root, 40)


@pytest.mark.slow
def test_a_thousand_flipped_bits_are_reported_with_the_files_name(root: Path) -> None:
    flips_are_reported(root, 1000)


@pytest.mark.parametrize("kind", ["groups", "inputs", "splits", "lists of chunks"])
def test_every_bit_of_a_header_counts(root: Path, kind: str) -> None:
    """Text has bits that readers overlook: white space, the case of a digit, a key that is not looked at."""
    pattern, check = maintenance.FILES[kind]
    path = sorted(root.glob(pattern))[0]
    whole = path.read_bytes()
    for bit in range(0, 8 * min(len(whole), 400), 7):  # each bit of a byte in turn
        flip(path, bit)
        assert check(path), f"bit {bit} of {whole[bit // 8 : bit // 8 + 10]!r}"
        path.write_bytes(whole)


def test_every_bit_of_a_preview_counts() -> None:
    for whole, check in ((PICTURE, png_damage), (sealed_wav(SOUND), wav_damage), (sealed_text(WORDS).encode(), text_damage)):
        assert check(whole) == ""
        for bit in range(8 * len(whole)):
            raw = bytearray(whole)
            raw[bit // 8] ^= 1 << bit % 8
            assert check(bytes(raw)), f"bit {bit}"
        for length in range(len(whole)):
            left = whole[:length]
            unsealed = check is text_damage and left.endswith(b"\n")  # as an older version may have left it
            assert check(left) or (unsealed and check(left) is None), f"cut off after {length} bytes"
        assert check(whole + b"more")


def test_a_sealed_sound_plays_as_before_and_a_text_reads_so() -> None:
    (there, rate), (here, same) = (soundfile.read(io.BytesIO(raw), dtype="int16") for raw in (SOUND, sealed_wav(SOUND)))
    np.testing.assert_array_equal(there, here)
    assert rate == same == 48_000
    assert unsealed_text(sealed_text(WORDS)) == unsealed_text(WORDS) == WORDS


def test_what_an_older_version_left_without_a_checksum_is_told_and_is_no_damage(root: Path) -> None:
    split, chunks = (sorted(root.glob(f"datasets/*/{kind}-*.json"))[0] for kind in ("split", "chunks"))
    write_json(split, {"box_deg000_1000hz_00": "train"})
    write_json(chunks, {"train": [["box_deg000_1000hz_00"]]})
    for ending, content in (("wav", SOUND), ("txt", WORDS.encode())):
        sorted(root.glob(f"datasets/*/previews/*.{ending}"))[0].write_bytes(content)
    found = verify(root)
    assert found.damages == []
    told = {kind: number for kind, number in found.files.items() if kind.startswith("unsealed")}
    assert told == {"unsealed splits": 1, "unsealed lists of chunks": 1, "unsealed previews": 2}


def test_a_damaged_split_or_list_of_chunks_is_refused_with_what_to_do(tmp_path: Path) -> None:
    """Not read as it is: a sample would leave its side without a word, and with it the blocks it is in."""
    samples = pd.DataFrame({"id": [f"s{k}" for k in range(18)], "sequence": np.arange(18) // 3, "label": np.arange(18) % 3})
    samples = samples.assign(digest=samples["id"], angle=samples["label"])
    section = lab.SPLIT
    divided = stored_split(samples, section, tmp_path, print)
    sealed_chunks(divided, tmp_path / "chunks-x.json")
    assert stored_split(samples, section, tmp_path, print)["split"].tolist() == divided["split"].tolist()
    acts = {
        "split": lambda: stored_split(samples, section, tmp_path, print),
        "chunks": lambda: sealed_chunks(divided, tmp_path / "chunks-x.json"),
    }
    for name, act in acts.items():
        path = next(tmp_path.glob(f"{name}-*.json"))
        whole = path.read_bytes()
        path.write_bytes(whole.replace(b'"s3"', b'"s#"'))
        with pytest.raises(
            DamagedBlockError, match=rf"'{path.name}' is not as it was sealed; restore it from a copy, or remove it"
        ):
            act()
        path.write_bytes(whole)
        act()
        assert json_damage(path) == ""


def test_what_is_cut_off_emptied_or_gone_is_named(root: Path) -> None:
    blocks = sorted(root.glob("kernels/*/*.f32"))
    blocks[0].write_bytes(blocks[0].read_bytes()[:-4])
    blocks[1].write_bytes(b"")
    blocks[2].write_bytes(bytes(4))  # the checksum of nothing is 0
    blocks[3].unlink()
    shutil.copyfile(blocks[5], blocks[4])  # whole, but another block
    run = next(run for run in root.glob("runs/*") if blocks[3].parent.name not in (run / "run.json").read_text())
    (run / "run.json").unlink()
    expected = {path.relative_to(root).as_posix() for path in blocks[:5]} | {f"runs/{run.name}/run.json"}
    assert names_of(verify(root).damages) >= expected


def test_a_block_in_anothers_place_is_named(root: Path) -> None:
    """Its own checksum is right, but not the one that was recorded under this name."""
    by_size: dict[int, list[Path]] = {}
    for path in sorted(root.glob("kernels/*/*.f32")):
        by_size.setdefault(path.stat().st_size, []).append(path)
    here, there = next(paths for paths in by_size.values() if len(paths) > 1)[:2]
    shutil.copyfile(there, here)
    (damage,) = verify(root).damages
    assert damage.file == here.relative_to(root).as_posix()
    assert "but the catalogue has" in damage.reason


def test_nothing_with_the_checksum_of_nothing_is_no_block(tmp_path: Path) -> None:
    (tmp_path / "block").write_bytes(bytes(4))
    assert block_damage(tmp_path / "block") == "has 4 bytes, which is no block"


def test_a_damaged_seal_is_named_and_a_run_without_one_is_told(root: Path) -> None:
    first, second = sorted(root.glob("runs/*"))
    (first / SEAL).write_text("what is this")
    (second / SEAL).unlink()
    found = verify(root)
    assert names_of(found.damages) == {f"runs/{first.name}/{SEAL}"}
    assert found.unsealed == [second.name]


def test_a_damaged_verdict_is_named(root: Path) -> None:
    place = open_workspace(root)
    run = place.run(place.runs()["id"].iloc[0])
    pair = run.train_pairs.iloc[0]
    place.decide(run, (pair["id1"], pair["id2"]), "exclude", who="Mei", why="a truck passed")
    found = verify(root)
    assert (found.damages, found.files["verdicts"]) == ([], 1)
    path = root / "runs" / run.id / "verdicts.jsonl"
    path.write_text(path.read_text().replace("truck", "train"))
    (damage,) = verify(root).damages
    assert damage.file == f"runs/{run.id}/verdicts.jsonl"
    assert "Line 1" in damage.reason


def test_a_run_that_a_later_one_replaced_is_verified_too(root: Path) -> None:
    """Links to it go on working, so that what they show has to be right."""
    place = open_workspace(root)
    run = place.run(place.runs()["id"].iloc[0])
    place.register_run(run.id, run.recipe, state="superseded")
    assert verify(root).damages == []
    flip(root / "runs" / run.id / "samples.csv", 77)
    assert names_of(verify(root).damages) == {f"runs/{run.id}/samples.csv"}
    (root / "runs" / run.id / "run.json").unlink()
    assert names_of(verify(root).damages) == {f"runs/{run.id}/run.json"}


def test_verify_changes_nothing_and_needs_no_catalogue(root: Path) -> None:
    flip(sorted(root.glob("datasets/*/inputs/*"))[0], 1500)
    (root / "tracin.sqlite3").write_bytes(b"no database" * 1000)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert len(verify(root).damages) == 2
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before


def test_verify_and_doctor_do_not_wait_for_whoever_writes(root: Path) -> None:
    with open_workspace(root).catalogue.transaction():
        assert verify(root).damages == []
        assert wrong(root) == {}


def test_another_directory_is_no_workspace_and_none_is_made(tmp_path: Path) -> None:
    for act in (verify, rebuild_catalogue, collect_garbage):
        with pytest.raises(WorkspaceError, match="is not a workspace"):
            act(tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []


# ---- rebuild-catalogue ------------------------------------------------------------------------------------------------------


def known(root: Path) -> dict[str, list[tuple[object, ...]]]:
    """What the catalogue says of runs, decisions and blocks, but for what no file tells: when a run was asked for, a block's seconds."""
    catalogue = Catalogue(root / "tracin.sqlite3")
    queries = {
        "run": "SELECT id, name, recipe, state FROM run ORDER BY id",
        "exclusion": "SELECT run_id, created, who, why, rule, file, entries FROM exclusion ORDER BY created",
        "block": "SELECT name, shape, crc FROM block ORDER BY name",
    }
    return {table: [tuple(row) for row in catalogue.read(query)] for table, query in queries.items()}


def files_of(root: Path) -> dict[str, bytes]:
    """Every file but the catalogue and locks."""
    paths = (path for path in root.rglob("*") if path.is_file() and not path.name.startswith(("tracin.sqlite3", ".worker")))
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}


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


# ---- gc ---------------------------------------------------------------------------------------------------------------------


def test_what_finished_runs_refer_to_stays(root: Path) -> None:
    before = files_of(root)
    assert collect_garbage(root) == []
    assert files_of(root) == before


def test_what_only_a_dropped_run_needed_goes_and_its_order_is_listed_first(root: Path) -> None:
    place = open_workspace(root)
    kept, dropped = (place.run(run_id) for run_id in sorted(place.runs()["id"]))
    samples = len(dropped.samples)
    shutil.rmtree(root / "runs" / dropped.id)
    rebuild_catalogue(root)
    before = files_of(root)
    listed = collect_garbage(root, dry_run=True)
    assert files_of(root) == before
    assert collect_garbage(root) == listed
    gone = before.keys() - files_of(root).keys()
    listed_names = {garbage.path.relative_to(root).as_posix() for garbage in listed}
    assert gone - listed_names == {f"kernels/{group}/group.json" for group in dropped.manifest.groups}
    assert listed_names <= gone
    counts = pd.Series([garbage.kind for garbage in listed]).value_counts()
    assert counts.to_dict() == {"blocks": 28, "inputs": 4, "previews": 3 * samples}
    assert verify(root).damages == []
    assert {name for name, *_ in known(root)["block"]} == {key.name for key in maintenance.run_blocks(kept.manifest)}
    assert open_workspace(root).run(kept.id).kernels.test_train.shape == (2, 2, 6, 8)


def test_two_runs_over_the_same_blocks_share_them(root: Path) -> None:
    place = open_workspace(root)
    made_run(place, "first", seed=0, margin=2.0)
    shutil.rmtree(root / "runs" / digest_of(["first", 0, 1.0])[:12])
    assert collect_garbage(root) == []


def test_what_an_unfinished_run_may_have_computed_stays(root: Path) -> None:
    place = open_workspace(root)
    for path in root.glob("runs/*"):
        shutil.rmtree(path)
    rebuild_catalogue(root)
    place.register_run("unfinished00", made_recipe())
    assert collect_garbage(root) == []
    other = Recipe.from_dict({**made_recipe().to_dict(), "engine": {"threads": 1, "batch_size": 8}})
    with place.catalogue.transaction() as connection:
        connection.execute("UPDATE run SET recipe = ?", (other.model_dump_json(exclude_none=True),))
    assert {garbage.kind for garbage in collect_garbage(root)} == {"blocks"}


def test_half_written_files_go_after_an_hour(root: Path) -> None:
    group = next(root.glob("kernels/*"))
    old, young = group / ".block.f32.abc.partial", group / ".block.f32.def.partial"
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 4000,) * 2)
    assert [garbage.path for garbage in collect_garbage(root)] == [old]
    assert young.exists()


def test_what_the_machinery_keeps_stays(root: Path) -> None:
    """What was found in checkpoint files, the room set aside for a full disk, and a run that a later one of its training replaced."""
    place = open_workspace(root)
    run = place.run(place.runs()["id"].iloc[0])
    place.register_run(run.id, run.recipe, state="superseded")
    write_json(root / "checkpoints" / "known" / "0123.json", {"digest": "abc"})
    place.queue.keep_spare()
    place.queue.claim(processes.this_process())
    before = files_of(root)
    assert {"checkpoints/known/0123.json", "jobs/.spare", f"runs/{run.id}/run.json"} <= before.keys()
    assert (root / "jobs" / ".worker").exists()
    assert collect_garbage(root) == []
    assert files_of(root) == before
    assert open_workspace(root).run(run.id).kernels.test_train.shape == (2, 2, 6, 8)  # a link to it goes on working


def test_gc_removes_nothing_where_it_cannot_know(root: Path) -> None:
    for path in root.glob("runs/*/run.json"):
        shutil.rmtree(path.parent)
        break
    run = next(root.glob("runs/*/run.json"))
    whole = run.read_bytes()
    run.write_bytes(whole[:-9])
    before = files_of(root)
    with pytest.raises(WorkspaceError, match="Nothing was removed"):
        collect_garbage(root)
    run.write_bytes(whole)
    (root / "tracin.sqlite3").write_bytes(b"no database" * 1000)
    with pytest.raises(WorkspaceError, match="rebuild-catalogue first"):
        collect_garbage(root)
    run.write_bytes(whole[:-9])
    assert files_of(root) == before


@pytest.mark.parametrize("state", ["queued", "running", "paused"])
def test_gc_waits_for_jobs(root: Path, state: str) -> None:
    with open_workspace(root).catalogue.transaction() as connection:
        connection.execute(
            "INSERT INTO job (id, kind, state, title, request, request_digest, created, position) "
            "VALUES ('j', 'demo', ?, 't', '{}', 'd', 1, 1)",
            (state,),
        )
    with pytest.raises(WorkspaceError, match=f"'t'.* is {state}"):
        collect_garbage(root)


# ---- export -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1024, 3])
def test_an_export_reads_in_zarr_and_xarray_as_the_run(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr("tracin_core.records.zarr_export.CHUNK", chunk)
    place = open_workspace(original)
    run = place.run(place.runs()["id"].iloc[0])
    folder = place.export_zarr(run, tmp_path / "deep" / "kernels.zarr")
    group, dataset = zarr.open_group(folder, mode="r"), xarray.open_zarr(folder, consolidated=False)
    for name in ("test_train", "train_train", "test_test", "train_outputs", "test_outputs"):
        expected = getattr(run.kernels, name)
        np.testing.assert_array_equal(group[name][...], expected)
        np.testing.assert_array_equal(dataset[name].to_numpy(), expected)
    assert dataset["test_train"].dims == ("checkpoint", "layer", "test", "train")
    assert dataset["checkpoint"].to_numpy().tolist() == ["epoch 1", "epoch 2"]
    one = run.splits["train"]["id"].iloc[6]
    chosen = dataset["test_train"].sel(checkpoint="epoch 2", layer="head", train=one)
    np.testing.assert_array_equal(chosen.to_numpy(), run.kernels.test_train[1, 1, :, 6])
    assert dataset.attrs["run"] == run.id
    assert dataset.attrs["simulated"] == run.simulated
    assert dataset.attrs["recipe"] == run.manifest.recipe


def test_zarr_finds_a_flipped_bit_in_an_export(original: Path, tmp_path: Path) -> None:
    place = open_workspace(original)
    folder = place.export_zarr(place.run(place.runs()["id"].iloc[0]), tmp_path / "kernels.zarr")
    flip(folder / "test_train" / "c" / "0" / "0" / "0" / "0", 77)
    with pytest.raises(ValueError, match="checksum"):
        zarr.open_group(folder, mode="r")["test_train"][...]


def test_an_export_is_whole_or_not_there(root: Path, tmp_path: Path) -> None:
    place = open_workspace(root)
    run = place.run(place.runs()["id"].iloc[0])
    (tmp_path / "mine").mkdir()
    with pytest.raises(InputError, match="is there already"):
        place.export_zarr(run, tmp_path / "mine")
    key = run.manifest.outputs_key(run.manifest.groups[-1], run.manifest.chunks["validation"][-1])
    flip(place.store.path(key), 1)
    with pytest.raises(DamagedBlockError, match=key.file):
        place.export_zarr(run, tmp_path / "kernels.zarr")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "workspace"]


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_window_of_a_mosaic_is_that_of_the_assembled_kernel(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    store = BlockStore(tmp_path_factory.mktemp("mosaic"))
    heights, widths = (data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)) for _ in range(2))
    whole = np.random.default_rng(0).normal(size=(2, sum(heights), sum(widths))).astype(np.float32)
    blocks = []
    for i, height in enumerate(heights):
        blocks.append([])
        for j, width in enumerate(widths):
            piece = whole[:, sum(heights[:i]) :, sum(widths[:j]) :][:, :height, :width]
            turned = data.draw(st.booleans())
            values = piece.transpose(0, 2, 1) if turned else piece
            key = BlockKey("g", f"l{i}", f"r{j}", values.shape)
            store.write(key, values)
            blocks[-1].append((key, turned))
    mosaic = Mosaic(store, blocks)
    assert mosaic.shape == whole.shape
    rows, columns, layers = (
        slice(*sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n))))) for n in (*whole.shape[1:], 2)
    )
    np.testing.assert_array_equal(mosaic.window(rows, columns, layers), whole[layers, rows, columns])
    row, column = data.draw(st.integers(0, whole.shape[1] - 1)), data.draw(st.integers(0, whole.shape[2] - 1))
    np.testing.assert_array_equal(mosaic.row(row), whole[:, row])
    np.testing.assert_array_equal(mosaic.column(column), whole[:, :, column])


# ---- doctor and readiness ---------------------------------------------------------------------------------------------------


def wrong(root: Path) -> dict[str, str]:
    return {finding.name: finding.detail for finding in doctor.examine(root) if not finding.passed}


def test_a_sound_installation_has_nothing_wrong_and_nothing_is_made(root: Path, tmp_path: Path) -> None:
    before = sorted(root.rglob("*"))
    assert wrong(root) == {}
    assert sorted(root.rglob("*")) == before
    assert wrong(tmp_path / "nowhere") == {}
    assert not (tmp_path / "nowhere").exists()


def test_the_doctor_names_each_fault(root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pins = tmp_path / "requirements.txt"
    pins.write_text("numpy==1.0\n# words\nno-such-package==2.0\n")
    detail = doctor.packages(pins).detail
    assert f"numpy {np.__version__} instead of 1.0; no-such-package is missing instead of 2.0" in detail
    assert not doctor.file_system(root, lambda: iter([("/", "ext4"), (os.path.realpath(root.parent), "nfs4")])).passed
    assert doctor.file_system(root, lambda: iter([("/", "nfs"), (os.path.realpath(root.parent), "ext4")])).passed
    assert not doctor.room(root, least=2**80).passed
    (root / "tracin.sqlite3").unlink()
    open_workspace(root)
    assert "does not know 2 of 2 finished runs" in wrong(root)["catalogue"]
    (root / "tracin.sqlite3").write_bytes(b"no database" * 1000)
    assert f"rebuild-catalogue --workspace {root}" in wrong(root)["catalogue"]


def test_a_wal_file_is_told(root: Path) -> None:
    with sqlite3.connect(root / "tracin.sqlite3") as connection:
        connection.execute("PRAGMA journal_mode = WAL")
    connection.close()
    assert "WAL mode" in wrong(root)["catalogue"]


def running_job(place: Workspace, beat: float) -> None:
    with place.catalogue.transaction() as connection:
        connection.execute(
            "INSERT INTO job (id, kind, state, title, request, request_digest, created, position, beat) "
            "VALUES ('j', 'demo', 'running', 't', '{}', 'd', 1.0, 1, ?)",
            (beat,),
        )


def test_a_dead_or_silent_worker_is_told(root: Path) -> None:
    place = open_workspace(root)
    assert place.readiness() == {}
    running_job(place, time.time() - 100)
    assert "No worker is alive; job j runs, last heartbeat 100 s ago" in wrong(root)["worker"]
    assert "is dead" in place.readiness()["worker"]
    with place.queue.worker_lock():
        assert "may hang" in wrong(root)["worker"]
        assert "no sign of life for 100 s" in place.readiness()["worker"]
        with place.catalogue.transaction() as connection:
            connection.execute("UPDATE job SET beat = ?", (time.time(),))
        assert wrong(root) == {}
        assert place.readiness() == {}


def test_readiness_writes_to_the_catalogue(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = open_workspace(root)
    monkeypatch.setattr(doctor, "WRITE_SECONDS", 0.05)
    with place.catalogue.transaction():
        assert "locked" in place.readiness()["catalogue"]
    (root / "tracin.sqlite3").write_bytes(b"no database" * 1000)
    assert "cannot be written to" in place.readiness()["catalogue"]


# ---- the shell --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[object]:
    def type_(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tracin", *words])
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capsys.readouterr()
        return int(end.value.code or 0), said.out, said.err

    return type_


@pytest.mark.parametrize("verb", VERBS)
def test_help_shows_an_example_and_the_manual_has_a_section(shell, verb: str) -> None:
    code, said, _ = shell(verb, "--help")
    assert code == 0
    assert f"Example: python -m tracin_core {verb}" in " ".join(said.split())
    options = {word for word in said.split() if word.startswith("--")} - {"--help", "--workspace", "--json"}  # told once, for all
    section = MANUAL.read_text().split(f"\n## {verb}\n")[1].split("\n## ")[0]
    assert all(f"`{option}`" in section for option in options if option.removeprefix("--") != verb)


def test_the_shell_tells_what_is_damaged_and_ends_with_one(shell, root: Path) -> None:
    assert shell("verify", "--workspace", str(root)) == (0, shell("verify", "--workspace", str(root))[1], "")
    block = sorted(root.glob("kernels/*/*.f32"))[0]
    flip(block, 9)
    code, said, error = shell("verify", "--workspace", str(root))
    assert (code, error) == (
        1,
        "Error: 1 files are damaged or gone; each line says what to do; computing a run again redoes only these.\n",
    )
    assert f"DAMAGED kernels/{block.parent.name}/{block.name} has checksum" in said
    (root / "tracin.sqlite3").write_bytes(b"no database" * 1000)
    code, said, _ = shell("doctor", "--workspace", str(root))
    assert (code, "LOOK catalogue" in said) == (1, True)
    code, said, error = shell("rebuild-catalogue", "--workspace", str(root))
    assert (code, "2 finished runs, 2 exclusion lists and 55 blocks" in said) == (1, True)
    assert f"Left out, DAMAGED: kernels/{block.parent.name}/{block.name}" in said
    assert shell("doctor", "--workspace", str(root))[0] == 0


def test_the_shell_collects_and_exports(shell, root: Path, tmp_path: Path) -> None:
    code, said, _ = shell("export-zarr", "--workspace", str(root), "--output-dir", str(tmp_path / "kernels.zarr"))
    assert (code, (tmp_path / "kernels.zarr" / "zarr.json").is_file()) == (0, True)
    shutil.rmtree(sorted(root.glob("runs/*"))[0])
    code, said, _ = shell("gc", "--dry-run", "--workspace", str(root))
    assert (code, "would be removed: blocks" in said, "nothing was removed" in said) == (0, True, True)
    code, said, _ = shell("gc", "--workspace", str(root))
    assert (code, "removed: previews" in said) == (0, True)
    assert shell("gc", "--workspace", str(root))[1] == "0 files, 0.0 MiB\n"


# ---- nothing is computed twice ----------------------------------------------------------------------------------------------


def test_only_missing_blocks_are_computed(shelf: lab.Shelf, tmp_path: Path) -> None:
    """New recordings, a wider test set, another checkpoint, a second recipe: new blocks are those of the new names, and no other."""
    recordings = shutil.copytree(shelf.recordings(), tmp_path / "recordings")
    trained = shelf.checkpoints()
    folder = tmp_path / "growing"
    folder.mkdir()
    for epoch in (0, 1):
        shutil.copy2(trained / f"model_epoch_{epoch}.pt", folder)
    place = open_workspace(tmp_path / "workspace")
    recipe = lab.recipe_for(recordings, folder)

    def computed(recipe: Recipe) -> tuple[Run, int]:
        """The run, and how many blocks the worker says that it computed; those that were there are untouched."""
        before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in place.root.glob("kernels/*/*.f32")}
        run = place.compute(recipe)
        assert all((path.stat().st_mtime_ns, path.read_bytes()) == was for path, was in before.items())
        new = len(list(place.root.glob("kernels/*/*.f32"))) - len(before)
        log = place.job_log(place.jobs()[0].id)
        assert any(f"blocks computed: {new}, found:" in line for line in log)
        return run, new

    try:
        first, count = computed(recipe)
        assert count == 2 * (1 + 1 + 3)  # checkpoints x (outputs of train and test, train x train, test x train, test x test)
        angles, takes = (sorted(set(first.splits["validation"][name])) for name in ("angle", "sequence"))
        record(recordings, angles[:5], [10, 11, 12, 13])  # new takes are for training
        second, count = computed(recipe)
        assert [len(chunk.ids) for chunk in second.manifest.chunks["train"]] == [18, 20]
        assert count == 2 * (1 + 2 + 1)  # new x (outputs; old and new train; test)
        record(recordings, [170, 175], takes)  # takes that test already
        third, count = computed(recipe)
        assert [len(chunk.ids) for chunk in third.manifest.chunks["validation"]] == [12, 4]
        assert count == 2 * (1 + 2 + 2)  # new x (outputs; both trains; old and new test)
        shutil.copy2(trained / "model_epoch_2.pt", folder)
        fourth, count = computed(recipe)
        assert count == len(fourth.manifest.kernel_keys(fourth.manifest.groups[-1])) == 4 + 3 + 3 + 4
        other = Recipe.from_dict({**recipe.to_dict(), "name": "other", "task": {"loss": "logistic", "margin": 2.0}})
        fifth, count = computed(other)
        assert count == 0
        assert fifth.id != fourth.id
        assert verify(place.root).damages == []
    finally:
        lab.stop_worker(place)


def record(recordings: Path, angles: Sequence[int], takes: Sequence[int]) -> None:
    """Further recordings, whose sound is an old one."""
    sources = sorted(recordings.rglob("*.wav"))
    for number, (angle, take) in enumerate(itertools.product(angles, takes)):
        target = recordings / f"deg{angle:03d}" / lab.MATERIAL / f"{lab.MATERIAL}_deg{angle:03d}_{lab.FREQUENCY}_{take:02d}.wav"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(sources[number], target)
