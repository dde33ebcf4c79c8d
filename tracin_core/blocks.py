"""One block of a kernel, computed by whichever process is asked to: `run_block(spec) -> receipt`.

A spec names everything by content inside the workspace's directory, so that any process that sees the directory can compute the block. The
function is idempotent: a block that is there and whole is not computed again, and two processes that compute it write the same bytes.
What is recorded about a block is the caller's business.
"""

import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal

import psutil

from tracin_core.errors import PluginError
from tracin_core.recipe import MODEL_FORMS, Cotangent, EngineSection, ModelSection, PluginModel
from tracin_core.records.datasets import load_inputs
from tracin_core.records.plugins import plugin_digest
from tracin_core.records.store import BlockKey, BlockStore

ORIGIN_SAMPLES: Final = 15  # that say what score gradients have in common; part of what a block's `origin` means

Layers = dict[str, tuple[str, ...]]  # names of parameters by layer group


@dataclass(frozen=True)
class Preconditioning:
    """By what the gradients of a checkpoint are divided: see `engine/adam.py`.

    Args:
        form: adam or adam_full.
        second_moment: digest of the kept copy.
        origin: digest of the chunk whose first samples gradients are measured from, for scores that are compared in pairs; else None.
    """

    form: Literal["adam", "adam_full"]
    second_moment: str
    origin: str | None = None


@dataclass(frozen=True)
class CurvedPreconditioning:
    """By which curvature the gradients of a checkpoint are divided: see `engine/ekfac.py`.

    Args:
        curvature: digest of the kept copy, which no damping is in.
        damping: times the mean eigenvalue.
    """

    curvature: str
    damping: float
    form: Literal["ekfac"] = "ekfac"


@dataclass(frozen=True)
class BlockSpec:
    """One block to compute.

    Args:
        root: the workspace's directory, as this process sees it.
        dataset: key of the data set, whose chunks the block's digests name.
        checkpoint: digest of the canonical weights.
        cotangent: whose gradients the products are of; `label_logit` reads the chunks' labels.
        plugin: digest of the file that the model is built by, where it is a plugin's.
        precondition: None for plain gradients.
    """

    root: str
    dataset: str
    checkpoint: str
    key: BlockKey
    model: ModelSection
    engine: EngineSection
    layers: Layers
    cotangent: Cotangent = "score"
    plugin: str | None = None
    precondition: Preconditioning | CurvedPreconditioning | None = None


@dataclass(frozen=True)
class Receipt:
    """What became of a block: a few hundred bytes, whatever the block holds."""

    name: str
    shape: tuple[int, ...]
    crc: int
    seconds: float
    computed: bool
    rss_mb: int = 0
    notes: tuple[str, ...] = ()


Runner = Callable[[Iterable[BlockSpec]], Iterator["Receipt | BlockFailure"]]


@dataclass(frozen=True)
class BlockFailure:
    """A block that could not be computed, after so many attempts."""

    name: str
    reason: str
    attempts: int


def run_block(spec: BlockSpec) -> Receipt:
    """The block is on disk, whole.

    Raises:
        NonFiniteError: a value is NaN or infinite: nothing is written.
        DiskFullError: there is no room: nothing is changed.
        DamagedBlockError, FileNotFoundError: inputs or weights are not there as the spec says.
    """
    started = time.monotonic()
    store = BlockStore(Path(spec.root) / "kernels")
    if store.holds(spec.key):
        return Receipt(spec.key.name, spec.key.shape, store.checksum(spec.key), 0.0, computed=False)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UserWarning)  # memory that ran short is told in the receipt
        values = compute(spec)
    crc = store.write(spec.key, values)
    rss = psutil.Process().memory_info().rss // 2**20
    notes = tuple(str(warning.message) for warning in told)
    return Receipt(spec.key.name, spec.key.shape, crc, time.monotonic() - started, computed=True, rss_mb=rss, notes=notes)


def compute(spec: BlockSpec) -> Any:
    """The block's numbers, float32 on the CPU."""
    import torch

    from tracin_core.engine.classification import logit_kernel_by_layer, output_kernel_by_layer
    from tracin_core.engine.kernel import model_outputs, tangent_kernel_by_layer

    if torch.get_num_threads() != spec.engine.threads:
        torch.set_num_threads(spec.engine.threads)
    section = MODEL_FORMS.dump_json(spec.model).decode()
    model = loaded_model(spec.root, spec.checkpoint, section, spec.plugin, spec.engine.device)
    folder, device = str(Path(spec.root) / "datasets" / spec.dataset), spec.engine.device
    settings: Any = {"groups": spec.layers, "batch_size": spec.engine.batch_size}
    left, left_labels = chunk_tensors(folder, spec.key.left, device)
    if spec.key.right is None:
        values = model_outputs(model, left, batch_size=spec.engine.batch_size).reshape(spec.key.shape)
        return values.detach().cpu().numpy()
    settings["precondition"] = loaded_precondition(spec.root, folder, spec.precondition, model, device)
    right, right_labels = (None, None) if spec.key.right == spec.key.left else chunk_tensors(folder, spec.key.right, device)
    if spec.cotangent == "label_logit":
        values = logit_kernel_by_layer(model, left, left_labels, right, right_labels, **settings)
    elif spec.cotangent == "outputs":
        values = output_kernel_by_layer(model, left, right, **settings)
    else:
        values = tangent_kernel_by_layer(model, left, right, **settings)
    return values.detach().cpu().numpy()


@lru_cache(maxsize=1)
def loaded_model(root: str, checkpoint: str, section: str, plugin: str | None, device: str) -> Any:
    """The model with these weights, kept for the next block of the same checkpoint.

    Raises:
        PluginError: the plugin's file is not the one that the block is named after.
    """
    from tracin_core.engine.checkpoints import load_weights
    from tracin_core.engine.models import build_model

    form, plugins = MODEL_FORMS.validate_json(section), Path(root) / "plugins"
    if isinstance(form, PluginModel) and plugin_digest(plugins, form.name) != plugin:
        raise PluginError(
            f"The plugin '{form.name}.py' was changed since the run was asked for; ask for the run again, it is then computed with "
            f"the file as it is now."
        )
    model = build_model(form, plugins)
    load_weights(model, Path(root) / "checkpoints", checkpoint)
    return model.to(device).eval()


@lru_cache(maxsize=1)
def loaded_precondition(
    root: str, folder: str, chosen: Preconditioning | CurvedPreconditioning | None, model: Any, device: str
) -> Any:
    """What gradients are multiplied by, as the engine takes it; None for plain gradients."""
    from tracin_core.engine.adam import load_precondition
    from tracin_core.engine.ekfac import load_curvature

    if chosen is None:
        return None
    if isinstance(chosen, CurvedPreconditioning):
        return load_curvature(Path(root) / "checkpoints", chosen.curvature).relative_inverse(chosen.damping)
    origin = None if chosen.origin is None else chunk_tensors(folder, chosen.origin, device)[0][:ORIGIN_SAMPLES]
    return load_precondition(model, Path(root) / "checkpoints", chosen.second_moment, chosen.form, origin)


@lru_cache(maxsize=4)
def chunk_tensors(folder: str, digest: str, device: str) -> tuple[Any, Any]:
    """The inputs of a chunk, and its labels where it keeps any; kept for the next block that needs them."""
    import torch

    inputs, labels = load_inputs(Path(folder), digest)
    return torch.from_numpy(inputs).to(device), None if labels is None else torch.from_numpy(labels).to(device)
