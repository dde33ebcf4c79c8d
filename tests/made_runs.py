"""Workspaces with finished runs of random numbers: every file that a worker leaves, at once and without torch.

def test_something(root):      # a workspace of this test's own: two runs of two data deliveries, and a decision about each
    flip(root / "runs" / "0123" / "run.json", 7)
"""

import hashlib
import io
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.numpy
import soundfile
from PIL import Image

from tracin_core.data.files import write_text, write_whole
from tracin_core.data.readers import sample_digest
from tracin_core.data.seals import sealed_text, sealed_wav, write_sealed
from tracin_core.recipe import Recipe
from tracin_core.records import maintenance
from tracin_core.records.catalogue import Catalogue
from tracin_core.records.datasets import dataset_key, keep_inputs
from tracin_core.records.manifest import Chunk, Manifest, chunk_digest
from tracin_core.records.runs import Run
from tracin_core.records.store import BlockKey, digest_of
from tracin_core.records.workspace import Workspace, open_workspace

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
