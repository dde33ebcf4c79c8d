"""What a workspace keeps of a data set: its split, its sealed chunks and the inputs of each chunk.

datasets/<key>/split-<split>.json      side of each sample, decided once
datasets/<key>/chunks-<split>.json     samples whose products are stored together, for good
datasets/<key>/inputs/<chunk>.safetensors      what the model takes, in the order of the chunk; where products depend on labels, these too
datasets/<key>/previews/               picture, sound or text of each sample

The JSON files are sealed (`data/seals.py`): a damaged one is refused, for what it decides is nowhere else.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import safetensors
import safetensors.numpy

from tracin_core.data.files import write_whole
from tracin_core.data.readers import Inputs, sample_digest
from tracin_core.data.samples import split_samples
from tracin_core.data.seals import read_sealed, write_sealed
from tracin_core.errors import DamagedBlockError
from tracin_core.recipe import PluginData, Recipe, RecordingsData, SplitSection
from tracin_core.records.manifest import Chunk, chunk_digest
from tracin_core.records.plugins import plugin_digest
from tracin_core.records.store import digest_of

CHUNK_SAMPLES: Final = 512
SPLIT_LOST: Final = "restore it from a copy, or remove it: the sides are then decided anew, and samples may change theirs."
CHUNKS_LOST: Final = (
    "restore it from a copy, or remove it: chunks are then formed anew, and their blocks computed where they differ."
)
Labels = npt.NDArray[np.int64]


def dataset_key(recipe: Recipe, plugins: Path) -> str:
    """Names the data that a recipe reads; a plugin's by its file's content."""
    data = recipe.data
    if isinstance(data, RecordingsData):
        return digest_of([str(data.root.resolve()), data.material, data.frequency])[:12]
    if isinstance(data, PluginData):
        return digest_of([data.model_dump(mode="json"), plugin_digest(plugins, data.name)])[:12]
    return digest_of(data.model_dump(mode="json"))[:12]


def split_key(section: SplitSection, task: str = "ranking") -> str:
    """Names a way of splitting; the classes that `stratified` deals out are the task's."""
    named = section.model_dump(mode="json", exclude_none=True)
    return digest_of([named, task] if section.rule == "stratified" else named)[:12]


def stored_split(
    samples: pd.DataFrame, section: SplitSection, folder: Path, say: Callable[[str], None], *, task: str = "ranking"
) -> pd.DataFrame:
    """The samples with their side, decided once and stored in the data set's folder as ids.

    Recordings that came later are on the side of their take, other samples on train. A column and id files are followed whatever was
    stored: they are somebody's decision, and changes of it are said.

    Raises:
        DamagedBlockError: the stored split is not as it was sealed.
    """
    path = folder / f"split-{split_key(section, task)}.json"
    if not path.exists():
        divided = split_samples(samples, section)
        write_sealed(path, dict(zip(divided["id"], divided["split"], strict=True)))
        return divided
    stored: dict[str, str] = read_sealed(path, SPLIT_LOST)
    if section.rule in ("column", "files"):
        divided = split_samples(samples, section)
        sides = dict(zip(divided["id"], divided["split"], strict=True))
        moved = [sample_id for sample_id, side in sides.items() if stored.get(sample_id, side) != side]
        if moved:
            say(f"{len(moved)} samples are on another side than before, as the {section.rule} says now: {', '.join(moved[:3])}")
        if sides != stored:
            write_sealed(path, sides)
        return divided
    new = samples[~samples["id"].isin(list(stored))]
    if len(new):
        sides, told = late_sides(samples, new, stored)
        stored |= sides
        write_sealed(path, stored)
        say(f"{len(new)} samples came after the split was decided: {told}")
    return samples.assign(split=[stored[sample_id] for sample_id in samples["id"]])


def late_sides(samples: pd.DataFrame, new: pd.DataFrame, stored: dict[str, str]) -> tuple[dict[str, str], str]:
    """The sides of samples that came after the split was decided, and by what, in words."""
    if not {"material", "frequency", "sequence"} <= set(samples.columns):  # no recordings, which alone have takes
        return {str(sample): "train" for sample in new["id"]}, "all of them are on train"
    known = samples[samples["id"].isin(list(stored))]
    by_take = {int(take): stored[str(sample)] for sample, take in zip(known["id"], known["sequence"], strict=True)}
    sides = {str(sample): by_take.get(int(take), "train") for sample, take in zip(new["id"], new["sequence"], strict=True)}
    return sides, "each is on the side of its take, new takes are on train"


def sealed_chunks(
    samples: pd.DataFrame, path: Path, *, labelled: bool = False, size: int = CHUNK_SAMPLES
) -> dict[str, tuple[Chunk, ...]]:
    """Each side's samples in chunks that never change their membership; samples that came later form new ones.

    Args:
        labelled: products depend on labels, which are then part of each chunk's identity.
        size: samples of a new chunk.

    Raises:
        DamagedBlockError: the list of chunks is not as it was sealed.
    """
    sealed: dict[str, list[list[str]]] = read_sealed(path, CHUNKS_LOST) if path.exists() else {}
    before = {side: len(chunks) for side, chunks in sealed.items()}
    digests = dict(zip(samples["id"], samples["digest"], strict=True))
    if labelled:
        labels = dict(zip(samples["id"], samples["label"], strict=True))
        digests = {sample_id: labelled_digest(digest, int(labels[sample_id])) for sample_id, digest in digests.items()}
    for side in ("train", "validation", "test"):
        here = samples.loc[samples["split"] == side, "id"].tolist()
        known = {sample_id for ids in sealed.get(side, []) for sample_id in ids}
        new = [sample_id for sample_id in here if sample_id not in known]
        sealed.setdefault(side, []).extend(new[at : at + size] for at in range(0, len(new), size))
    if {side: len(chunks) for side, chunks in sealed.items()} != before:
        write_sealed(path, sealed)
    now = dict(zip(samples["id"], samples["split"], strict=True))  # a sample that changed its side leaves the chunk that it was in
    present = {side: [[i for i in ids if now.get(i) == side] for ids in chunks] for side, chunks in sealed.items()}
    return {
        side: tuple(Chunk(tuple(ids), chunk_digest([digests[i] for i in ids])) for ids in chunks if ids)
        for side, chunks in present.items()
    }


def labelled_digest(digest: str, label: int) -> str:
    """Identity of a sample under a label."""
    return digest_of([digest, label])[:32]


def keep_inputs(folder: Path, chunk: Chunk, inputs: Inputs, labels: Labels | None = None) -> None:
    """The chunk's inputs, and labels where its identity has them, are on disk for whichever process computes its blocks."""
    path = inputs_path(folder, chunk.digest)
    if path.exists():
        return
    parts = {"inputs": np.ascontiguousarray(inputs)} | ({} if labels is None else {"labels": np.ascontiguousarray(labels)})
    write_whole(path, [safetensors.numpy.save(parts)])


def load_inputs(folder: Path, digest: str) -> tuple[Inputs, Labels | None]:
    """The inputs of the chunk of this digest, and the labels that it keeps, proven to be its own.

    Raises:
        DamagedBlockError: the file holds other numbers than the digest says.
        FileNotFoundError: the chunk's inputs were never kept.
    """
    path = inputs_path(folder, digest)
    try:
        parts = safetensors.numpy.load(path.read_bytes())
        whole = digest_of_inputs(parts) == digest
    except (safetensors.SafetensorError, KeyError, ValueError):
        whole = False
    if not whole:
        path.unlink(missing_ok=True)
        raise DamagedBlockError(
            f"The inputs '{path.name}' are damaged and were removed; compute the run again: they are read from the data anew."
        )
    return parts["inputs"], parts.get("labels")


def digest_of_inputs(parts: dict[str, npt.NDArray[Any]]) -> str:
    """The digest of the chunk whose inputs, and labels, these are.

    Raises:
        KeyError, ValueError: they are no chunk's.
    """
    digests = [sample_digest(sample) for sample in parts["inputs"]]
    if "labels" in parts:
        digests = [labelled_digest(found, int(label)) for found, label in zip(digests, parts["labels"], strict=True)]
    return chunk_digest(digests)


def inputs_path(folder: Path, digest: str) -> Path:
    return folder / "inputs" / f"{digest}.safetensors"
