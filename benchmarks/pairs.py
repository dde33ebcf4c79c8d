"""Every training pair against every validation pair at every checkpoint: this product, and Captum's TracInCP. One line of JSON.

    python benchmarks/pairs.py [--captum-pairs 64] [--whole] [--repeats 3] [--threads 2] [--folder build/benchmarks/pairs]

Both start from the demo's files: SIMULATED recordings, read once and not timed, and the checkpoints of a ranker trained on them, which
each side loads itself. Both sum the same pair losses over the same checkpoints with weight 1. Runs take turns; medians are printed, and
every turn beside them: turns that differ much mean that the machine had other work.

Captum runs on some training pairs and some validation pairs, and its time is scaled by the number of pairs that it differentiates,
(N + M) / (n + m): one gradient per pair and checkpoint is where its time goes. (Scaling by the products N M / n m would make it look far
slower than it is.) `--whole` runs it once on everything instead.

Captum's `sample_wise_grads_per_batch=True` would be faster, but knows Linear and Conv2d only and leaves the gradients of BatchNorm's
parameters out without a word; its exact default is what is timed. The fastest of several batch sizes is chosen for it first.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import psutil
import torch
from captum.influence import TracInCP
from common import processor, rounded, tell
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from tracin_core.data.readers import list_recordings, read_inputs
from tracin_core.data.samples import all_pairs, split_samples, stratified_pairs
from tracin_core.data.simulated import simulate_recordings
from tracin_core.engine.checkpoints import intake_folder, load_weights
from tracin_core.engine.kernel import model_outputs, tangent_kernel_by_layer
from tracin_core.engine.models import build_model
from tracin_core.engine.training import train_ranker
from tracin_core.errors import TracInError
from tracin_core.recipe import RankerModel, SplitSection
from tracin_core.records.checkpoint_files import epoch_of, list_checkpoints
from tracin_core.scores.influence import Kernels
from tracin_core.scores.losses import PairLoss
from tracin_core.scores.view import View

MATERIAL, FREQUENCY, PREFIX = "box", "1000hz", "model_epoch_"
CAPTUM_BATCHES = (1, 4, 16)
Result = TypeVar("Result")


@dataclass(frozen=True)
class Side:
    """One side of the split: samples, their inputs [n, 1, F, T], and all unordered pairs of different angles."""

    samples: pd.DataFrame
    inputs: Tensor
    pairs: pd.DataFrame


@dataclass(frozen=True)
class Case:
    """What both sides compute on."""

    train: Side
    test: Side
    checkpoints: list[Path]
    loss: PairLoss


@dataclass(frozen=True)
class Finished:
    """Influences [train pairs, test pairs], and the seconds of each stage."""

    scores: np.ndarray
    seconds: dict[str, float]

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


class PairData(Dataset):
    """(first input, second input, target) of each pair."""

    def __init__(self, pairs: pd.DataFrame, inputs: Tensor) -> None:
        self.ends = pairs[["first", "second"]].to_numpy()
        self.targets = torch.from_numpy(pairs["target"].to_numpy().astype(np.float32))
        self.inputs = inputs

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor, Tensor]:
        first, second = self.ends[row]
        return self.inputs[first], self.inputs[second], self.targets[row]


class MarginLoss(nn.Module):
    """The margin loss [N] of N score differences."""

    reduction = "none"  # what Captum looks for

    def __init__(self, margin: float) -> None:
        super().__init__()
        self.margin = margin

    def forward(self, difference: Tensor, target: Tensor) -> Tensor:
        return (self.margin - target * difference).clamp(min=0)


class PairModel(nn.Module):
    """Score differences [N] of N pairs, with both samples of all pairs in one forward pass."""

    def __init__(self, ranker: nn.Module) -> None:
        super().__init__()
        self.ranker = ranker

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        scores = self.ranker(torch.cat([first, second])).squeeze(-1)
        return scores[: len(first)] - scores[len(first) :]


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    case = prepare(options.folder)
    train, test = case.train.pairs, case.test.pairs
    if not options.whole:
        train, test = stratified_pairs(train, options.captum_pairs), stratified_pairs(test, options.captum_pairs)
    batch = fastest_batch(case)
    compute_by_kernels(case)  # the first run of either side pays for one-off initialisation; the batch trial was Captum's
    ours, peers = [], []
    for turn in range(options.repeats):
        ours.append(compute_by_kernels(case))
        if turn == 0 or not options.whole:
            peers.append(compute_by_captum(case, train, test, batch))
        tell(f"turn {turn + 1} of {options.repeats}: ours {ours[-1].total:.2f} s, captum {peers[-1].total:.2f} s")
    print(json.dumps(report(case, ours, peers, train, test, batch, options)))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--captum-pairs", type=int, default=64, help="training pairs, and validation pairs, given to Captum")
    parser.add_argument("--whole", action="store_true", help="run Captum once on every pair: nothing is scaled")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--folder", type=Path, default=Path("build/benchmarks/pairs"), help="kept recordings and checkpoints")
    return parser.parse_args()


def prepare(folder: Path) -> Case:
    """The demo's recordings and checkpoints are in the folder, made if they are not there yet, and read."""
    recordings, checkpoints = folder / "recordings", folder / "checkpoints"
    if not (recordings / "truth.json").exists():
        tell("simulating recordings")
        simulate_recordings(recordings, material=MATERIAL, frequency=FREQUENCY)
    samples = split_samples(list_recordings(recordings, MATERIAL, FREQUENCY), SplitSection())
    inputs = read_inputs(recordings, samples)
    if not (checkpoints / "training.json").exists():
        tell("training the ranker")
        train_ranker(inputs, samples, checkpoints)
    settings = json.loads((checkpoints / "training.json").read_text(encoding="utf-8"))["settings"]
    return Case(
        train=side(samples, inputs, "train"),
        test=side(samples, inputs, "validation"),
        checkpoints=[path for path in list_checkpoints(checkpoints, PREFIX) if epoch_of(path.name, PREFIX) != 0],
        loss=PairLoss(name=settings["loss"], margin=settings["margin"]),
    )


def side(samples: pd.DataFrame, inputs: np.ndarray, name: str) -> Side:
    rows = np.flatnonzero(samples["split"].to_numpy() == name)
    here = samples.iloc[rows].reset_index(drop=True)
    return Side(here, torch.from_numpy(inputs[rows]), all_pairs(here))


def timed(seconds: dict[str, float], stage: str, work: Callable[[], Result]) -> Result:
    started = time.perf_counter()
    result = work()
    seconds[stage] = time.perf_counter() - started
    return result


def compute_by_kernels(case: Case) -> Finished:
    """Every influence, as the worker computes it: checkpoints examined and kept, kernels per layer, then pair algebra."""
    seconds: dict[str, float] = {}
    model = build_model(RankerModel())
    with tempfile.TemporaryDirectory() as store:
        outcomes = timed(seconds, "intake", lambda: intake_folder(case.checkpoints, Path(store), model))
        refusal = next((outcome for outcome in outcomes if isinstance(outcome, TracInError)), None)
        if refusal is not None:
            raise refusal
        digests = [outcome.digest for outcome in outcomes]
        kernels = timed(seconds, "kernels", lambda: all_kernels(case, model, Path(store), digests))
    view = View.of_pairs(
        case.train.pairs,
        case.test.pairs,
        kernels,
        loss=case.loss,
        checkpoint_weights=np.ones(len(digests)),
        checkpoint_names=[path.name for path in case.checkpoints],
        train_samples=case.train.samples,
        test_samples=case.test.samples,
    )
    return Finished(timed(seconds, "scores", view.influence), seconds)


def all_kernels(case: Case, model: nn.Module, store: Path, digests: list[str]) -> Kernels:
    """What a run keeps of each checkpoint; each is loaded once."""
    train, test = case.train.inputs, case.test.inputs
    parts: list[tuple[Tensor, ...]] = []
    for digest in digests:
        load_weights(model, store, digest)
        parts.append(
            (
                tangent_kernel_by_layer(model, train),
                tangent_kernel_by_layer(model, test, train),
                tangent_kernel_by_layer(model, test),
                model_outputs(model, train).squeeze(-1),
                model_outputs(model, test).squeeze(-1),
            )
        )
    return Kernels(*(torch.stack(part).numpy() for part in zip(*parts, strict=True)))


def compute_by_captum(case: Case, train: pd.DataFrame, test: pd.DataFrame, batch: int) -> Finished:
    """Influences of some training pairs on some test pairs by `TracInCP` with its exact per-sample gradients."""
    model = PairModel(build_model(RankerModel()))

    def load(_: nn.Module, path: str) -> float:
        model.ranker.load_state_dict(torch.load(path, weights_only=True)["model_state_dict"])
        return 1.0

    tracin = TracInCP(
        model,
        DataLoader(PairData(train, case.train.inputs), batch_size=batch),
        [str(path) for path in case.checkpoints],
        checkpoints_load_func=load,
        loss_fn=MarginLoss(case.loss.margin),
        sample_wise_grads_per_batch=False,
    )
    tests = DataLoader(PairData(test, case.test.inputs), batch_size=batch)
    seconds: dict[str, float] = {}
    scores = timed(seconds, "influence", lambda: tracin.influence(tests))
    return Finished(scores.detach().numpy().T, seconds)


def fastest_batch(case: Case) -> int:
    """The batch size that suits Captum best here; in a batch, each of its gradients goes through the whole batch."""
    train, test = stratified_pairs(case.train.pairs, 16), stratified_pairs(case.test.pairs, 16)
    compute_by_captum(case, train, test, CAPTUM_BATCHES[0])
    return min(CAPTUM_BATCHES, key=lambda batch: compute_by_captum(case, train, test, batch).total)


def report(
    case: Case,
    ours: list[Finished],
    peers: list[Finished],
    train: pd.DataFrame,
    test: pd.DataFrame,
    batch: int,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """The line that is printed."""
    everything, some = len(case.train.pairs) + len(case.test.pairs), len(train) + len(test)
    stages = {stage: statistics.median(run.seconds[stage] for run in ours) for stage in ours[0].seconds}
    total, measured = statistics.median(run.total for run in ours), statistics.median(run.total for run in peers)
    captum = measured * everything / some
    rows, columns = places(train, case.train.pairs), places(test, case.test.pairs)
    same, expected = ours[-1].scores[np.ix_(rows, columns)], peers[-1].scores
    return {
        "benchmark": "pairs",
        "data": f"SIMULATED {MATERIAL} {FREQUENCY}, ranker of {parameters()} parameters, {case.loss.describe()}",
        "train_pairs": len(case.train.pairs),
        "test_pairs": len(case.test.pairs),
        "checkpoints": len(case.checkpoints),
        "ours_seconds": rounded(total),
        "ours_stages": {stage: rounded(value) for stage, value in stages.items()},
        "captum_seconds": rounded(captum),
        "captum_measured_seconds": rounded(measured),
        "captum_measured_on": f"{len(train)} train pairs x {len(test)} test pairs",
        "captum_scaled": "no, measured whole" if some == everything else f"yes, by (N + M) / (n + m) = {everything} / {some}",
        "captum_setting": f"TracInCP, exact per-sample gradients, batch {batch} (fastest of {', '.join(map(str, CAPTUM_BATCHES))})",
        "turns": [
            {"ours": rounded(ours_run.total), "captum_measured": rounded(peer.total)}
            for ours_run, peer in zip(ours, peers, strict=False)
        ],
        "ratio": rounded(captum / total),
        "ratio_after_intake": rounded(captum / (total - stages["intake"])),
        "max_relative_error": float(np.abs(same - expected).max() / np.abs(expected).max()),
        "compared": int(expected.size),
        "compared_not_zero": int(np.count_nonzero(expected)),
        "repeats": len(ours),
        "threads": options.threads,
        "machine": machine(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in ("torch", "numpy", "captum")}},
    }


def places(some: pd.DataFrame, everything: pd.DataFrame) -> np.ndarray:
    """Rows of these pairs in the whole table."""
    return pd.Index(everything["id"]).get_indexer(pd.Index(some["id"]))


def parameters() -> int:
    return sum(parameter.numel() for parameter in build_model(RankerModel()).parameters())


def machine() -> dict[str, Any]:
    """What was measured on: processor, cores, memory, system; no name of it."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "system": f"{platform.system()} {platform.machine()}",
    }


if __name__ == "__main__":
    main()
