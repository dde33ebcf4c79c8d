"""What a workspace keeps of a data set: its split, its sealed chunks and the inputs of each chunk.

datasets/<key>/split-<split>.json      side of each sample, decided once
datasets/<key>/chunks-<split>.json     samples whose products are stored together, for good
datasets/<key>/inputs/<chunk>.safetensors      what the model takes, in the order of the chunk
datasets/<key>/previews/               picture and sound of each sample

The JSON files are sealed (`data/seals.py`): a damaged one is refused, for what it decides is nowhere else.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import safetensors
import safetensors.numpy

from tracin_core.data.files import write_whole
from tracin_core.data.readers import sample_digest
from tracin_core.data.samples import split_samples
from tracin_core.data.seals import read_sealed, write_sealed
from tracin_core.errors import DamagedBlockError
from tracin_core.recipe import Recipe, SplitSection
from tracin_core.records.runs import Chunk, chunk_digest
from tracin_core.records.store import digest_of

CHUNK_SAMPLES: Final = 512
SPLIT_LOST: Final = "restore it from a copy, or remove it: the sides are then decided anew, and samples may change theirs."
CHUNKS_LOST: Final = (
    "restore it from a copy, or remove it: chunks are then formed anew, and their blocks computed where they differ."
)
Inputs = npt.NDArray[np.float32]


def dataset_key(recipe: Recipe) -> str:
    """Names the recordings that a recipe reads."""
    return digest_of([str(recipe.data.root.resolve()), recipe.data.material, recipe.data.frequency])[:12]


def split_key(section: SplitSection) -> str:
    """Names a way of splitting."""
    return digest_of(section.model_dump(mode="json"))[:12]


def stored_split(samples: pd.DataFrame, section: SplitSection, folder: Path, say: Callable[[str], None]) -> pd.DataFrame:
    """The samples with their side, decided once and stored as ids; samples that came later follow their take, else train.

    Raises:
        DamagedBlockError: the stored split is not as it was sealed.
    """
    path = folder / f"split-{split_key(section)}.json"
    if not path.exists():
        divided = split_samples(samples, section)
        write_sealed(path, dict(zip(divided["id"], divided["split"], strict=True)))
        return divided
    stored: dict[str, str] = read_sealed(path, SPLIT_LOST)
    new = samples[~samples["id"].isin(list(stored))]
    if len(new):
        by_take = {int(row["sequence"]): stored[str(row["id"])] for _, row in samples[samples["id"].isin(list(stored))].iterrows()}
        stored |= {str(row["id"]): by_take.get(int(row["sequence"]), "train") for _, row in new.iterrows()}
        write_sealed(path, stored)
        say(f"{len(new)} recordings came after the split was decided: each is on the side of its take, new takes are on train")
    return samples.assign(split=[stored[sample_id] for sample_id in samples["id"]])


def sealed_chunks(samples: pd.DataFrame, path: Path) -> dict[str, tuple[Chunk, ...]]:
    """Each side's samples in chunks that never change their membership; samples that came later form new ones.

    Raises:
        DamagedBlockError: the list of chunks is not as it was sealed.
    """
    sealed: dict[str, list[list[str]]] = read_sealed(path, CHUNKS_LOST) if path.exists() else {}
    before = {side: len(chunks) for side, chunks in sealed.items()}
    digests = dict(zip(samples["id"], samples["digest"], strict=True))
    for side in ("train", "validation", "test"):
        here = samples.loc[samples["split"] == side, "id"].tolist()
        known = {sample_id for ids in sealed.get(side, []) for sample_id in ids}
        new = [sample_id for sample_id in here if sample_id not in known]
        sealed.setdefault(side, []).extend(new[at : at + CHUNK_SAMPLES] for at in range(0, len(new), CHUNK_SAMPLES))
    if {side: len(chunks) for side, chunks in sealed.items()} != before:
        write_sealed(path, sealed)
    present = {side: [[i for i in ids if i in digests] for ids in chunks] for side, chunks in sealed.items()}
    return {
        side: tuple(Chunk(tuple(ids), chunk_digest([digests[i] for i in ids])) for ids in chunks if ids)
        for side, chunks in present.items()
    }


def keep_inputs(folder: Path, chunk: Chunk, inputs: Inputs) -> None:
    """The chunk's inputs are on disk, for whichever process computes its blocks."""
    path = inputs_path(folder, chunk.digest)
    if path.exists():
        return
    write_whole(path, [safetensors.numpy.save({"inputs": np.ascontiguousarray(inputs)})])


def load_inputs(folder: Path, digest: str) -> Inputs:
    """The inputs of the chunk of this digest, proven to be its own.

    Raises:
        DamagedBlockError: the file holds other numbers than the digest says.
        FileNotFoundError: the chunk's inputs were never kept.
    """
    path = inputs_path(folder, digest)
    try:
        inputs: Inputs = safetensors.numpy.load(path.read_bytes())["inputs"]
    except (safetensors.SafetensorError, KeyError):
        inputs = np.empty(0, dtype=np.float32)
    if chunk_digest([sample_digest(sample) for sample in inputs]) != digest:
        path.unlink(missing_ok=True)
        raise DamagedBlockError(
            f"The inputs '{path.name}' are damaged and were removed; compute the run again: they are read from the recordings anew."
        )
    return inputs


def inputs_path(folder: Path, digest: str) -> Path:
    return folder / "inputs" / f"{digest}.safetensors"
