"""What a job reads before it computes: samples, their inputs and previews, from the recipe's data or from what is kept of them.

Files that are as they were when they were read are not read again: the inputs of each chunk are kept (`records/datasets.py`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from tracin_core.data.files import read_json, write_json
from tracin_core.data.readers import Inputs, Reader, reader_for, sample_digest
from tracin_core.data.samples import require_classes, with_labels
from tracin_core.data.simulated import PlantedFault, read_truth
from tracin_core.errors import DamagedBlockError
from tracin_core.recipe import ClassificationTask, DataSection, PluginData, Recipe
from tracin_core.records.datasets import (
    CHUNK_SAMPLES,
    dataset_key,
    keep_inputs,
    load_inputs,
    sealed_chunks,
    split_key,
    stored_split,
)
from tracin_core.records.manifest import Chunk
from tracin_core.records.progress import Progress
from tracin_core.records.store import digest_of
from tracin_core.records.workspace import Workspace

Chunks = dict[str, tuple[Chunk, ...]]
Dataset = tuple[pd.DataFrame, Inputs, Chunks]  # samples, their inputs, the sealed chunks of each side
MEASURED: Final = ("train", "validation")  # the sides that have kernels
PREVIEWS: Final = (".png", ".wav", ".txt")


def read_dataset(progress: Progress, recipe: Recipe) -> Dataset:
    """The samples with split and digest, their inputs, and the sealed chunks of each side; inputs and previews are on disk."""
    workspace, task = progress.workspace, recipe.task
    folder = workspace.root / "datasets" / dataset_key(recipe, plugins_of(workspace))
    reader = reader_of(workspace, recipe.data)
    samples = with_labels(reader.list(), task, classes=recipe.classes)
    samples = stored_split(samples, recipe.split, folder, progress.say, task=task.kind)
    for side in MEASURED if task.kind == "ranking" else ():
        require_classes(samples[samples["split"] == side])
    progress.step("samples", len(samples))
    note, files = folder / f"read-{digest_of(reader.preprocessing)[:12]}.json", files_of_samples(recipe.data, samples)
    known = known_digests(note, files)
    if known is not None:
        samples["digest"] = [known[sample_id] for sample_id in samples["id"]]
        chunks = chunks_of(samples, recipe, folder)
        inputs = kept_inputs(folder, samples, chunks)
        if inputs is not None and all(has_preview(folder, digest) for digest in samples["digest"]):
            progress.advance(len(samples))
            progress.skip("previews")
            progress.say(f"{len(samples)} samples are as they were: read from what is kept")
            return samples, inputs, chunks
    inputs = reader.read(samples, progress=progress.advance)
    samples["digest"] = [sample_digest(array) for array in inputs]
    progress.step("previews", len(samples))
    for row, digest in enumerate(samples["digest"]):
        if not has_preview(folder, digest):
            reader.preview(samples.iloc[row], inputs[row], folder / "previews" / digest)
        progress.advance(row + 1)
    chunks = chunks_of(samples, recipe, folder)
    place = {sample_id: row for row, sample_id in enumerate(samples["id"])}
    for chunk in (chunk for side in chunks.values() for chunk in side):
        rows = [place[sample_id] for sample_id in chunk.ids]
        keep_inputs(folder, chunk, inputs[rows], samples["label"].to_numpy()[rows] if is_labelled(recipe) else None)
    if files is not None:
        write_json(
            note,
            {sample_id: [files[sample_id], digest] for sample_id, digest in zip(samples["id"], samples["digest"], strict=True)},
        )
    return samples, inputs, chunks


def is_labelled(recipe: Recipe) -> bool:
    """The products of the run depend on labels."""
    return isinstance(recipe.task, ClassificationTask) and recipe.task.kernel == "label_logit"


def chunks_of(samples: pd.DataFrame, recipe: Recipe, folder: Path) -> Chunks:
    """The sealed chunks of each side; fewer samples in each where every output of a sample is a row of the kernel."""
    task = recipe.task
    each = int(samples["label"].max()) + 1 if isinstance(task, ClassificationTask) and task.kernel == "outputs" else 1
    size = max(CHUNK_SAMPLES // each, 1)
    name = f"chunks-{split_key(recipe.split, task.kind)}{'' if each == 1 else f'-{size}'}.json"
    return sealed_chunks(samples, folder / name, labelled=is_labelled(recipe), size=size)


# ---- what is kept -----------------------------------------------------------------------------------------------------------------


def files_of_samples(section: DataSection, samples: pd.DataFrame) -> dict[str, list[int]] | None:
    """What tells each sample's file from a changed one: its time of change cannot be set. None for a plugin, which may read anything."""
    if isinstance(section, PluginData):
        return None
    place = section.place
    paths = [place / path for path in samples["path"]] if place.is_dir() else [place] * len(samples)
    states = {path: path.stat() for path in dict.fromkeys(paths)}
    facts = {path: [state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino] for path, state in states.items()}
    return {str(sample_id): facts[path] for sample_id, path in zip(samples["id"], paths, strict=True)}


def known_digests(note: Path, files: Mapping[str, list[int]] | None) -> dict[str, str] | None:
    """The digest of each sample as it was noted when its file was read; None if any file is new or not as it was."""
    try:
        noted: dict[str, Any] = read_json(note)
        if files is None or any(noted[sample_id][0] != facts for sample_id, facts in files.items()):
            return None
        return {sample_id: str(noted[sample_id][1]) for sample_id in files}
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None


def kept_inputs(folder: Path, samples: pd.DataFrame, chunks: Chunks) -> Inputs | None:
    """The inputs of all samples in their order, from the chunks that are kept; None if any of these is not there, or damaged."""
    place = {sample_id: row for row, sample_id in enumerate(samples["id"])}
    inputs: Inputs | None = None
    for chunk in (chunk for side in chunks.values() for chunk in side):
        try:
            part, _ = load_inputs(folder, chunk.digest)
        except (OSError, DamagedBlockError):
            return None
        if inputs is None:
            inputs = np.empty((len(samples), *part.shape[1:]), dtype=part.dtype)
        inputs[[place[sample_id] for sample_id in chunk.ids]] = part
    return inputs


def has_preview(folder: Path, digest: str) -> bool:
    return any((folder / "previews" / f"{digest}{kind}").exists() for kind in PREVIEWS)


# ---- who reads --------------------------------------------------------------------------------------------------------------------


def reader_of(workspace: Workspace, section: DataSection) -> Reader:
    """What reads the recipe's data; a plugin's code runs here and nowhere before."""
    if isinstance(section, PluginData):
        from tracin_core.engine.plugins import PluginReader

        return PluginReader(plugins_of(workspace), section)
    return reader_for(section)


def truth_of(recipe: Recipe, samples: pd.DataFrame) -> list[PlantedFault]:
    """The faults that were planted in these samples, where a file that says so lies beside them; somebody else's file says nothing."""
    place = recipe.data.place
    if isinstance(recipe.data, PluginData):
        return []
    try:
        faults = read_truth(place if place.is_dir() else place.parent)
    except (ValueError, KeyError, TypeError):
        return []
    known = set(samples["id"])
    return [fault for fault in faults if fault.sample in known]


def plugins_of(workspace: Workspace) -> Path:
    return workspace.root / "plugins"
