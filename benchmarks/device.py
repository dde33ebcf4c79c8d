"""The engine on an accelerator: the same numbers as on the CPU, and how long they take. One line of JSON.

    python benchmarks/device.py --device cuda [--batch 512] [--repeats 3]

Exactness: 48 x 24 samples of each model, kernel in float32 and in float64 on the device, against the kernel in float64 on the CPU
(largest difference, relative to the largest entry). Speed: the kernel of each model on the device, its peer `torch.func` on the same
device in turn with it (at the fastest of three batch sizes on an H100), and a sixteenth of it on this machine's CPU once, in batches of
32. Runs: the demo's recordings (SIMULATED), and 1,000 digits by EKFAC, trained once, analysed by the worker with `device = "cpu"` and
with the accelerator; influences of all training examples on all tests, compared.
"""

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Encoder, difference, medians, per_sample_gradients, report, take_turns, timed
from torch import Tensor, nn

from tracin_core import Recipe, open_workspace
from tracin_core.data.demos import write_digits
from tracin_core.engine.kernel import tangent_kernel
from tracin_core.engine.models import Ranker
from tracin_core.records.workspace import Workspace

FEW = 48
ONE_IN = 16  # of the samples are given to the CPU, and its seconds are scaled by their number


@dataclass(frozen=True)
class Case:
    """A model, the shape of one sample, and how many of them; `peer` differentiates this many at once."""

    build: Callable[[], nn.Module]
    sample: tuple[int, ...]
    left: int
    right: int
    peer: int


def multilayer() -> nn.Module:
    return nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 1))


CASES = {
    "ranker": Case(lambda: Ranker("large_resized"), (1, 128, 128), 4096, 512, 256),
    "transformer": Case(Encoder, (64, 128), 4096, 512, 256),
    "mlp": Case(multilayer, (784,), 20_000, 2_000, 1000),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch", type=int, default=512, help="samples that ours differentiates at once")
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of samples, for slow devices")
    options = parser.parse_args()
    findings = {name: measured(case, options) for name, case in CASES.items()}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        workspace = open_workspace(Path(folder))
        told = {"demo": demo(workspace, options.device), "digits by EKFAC": digits(workspace, options.device)}
    report("device", device=name_of(options.device), models=findings, runs=told)


def measured(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """Exactness and seconds of one model."""
    torch.manual_seed(0)
    model = case.build().eval()
    few = torch.randn(FEW, *case.sample), torch.randn(FEW // 2, *case.sample)
    single = tangent_kernel(model, *few).double()
    exact = tangent_kernel(model.double(), *(side.double() for side in few))
    there = model.to(options.device)
    wide = tangent_kernel(there, *(side.double() for side in few)).cpu()
    narrow = tangent_kernel(there.float(), *few).cpu().double()
    left, right = (int(options.scale * count) for count in (case.left, case.right))
    sides = torch.randn(left, *case.sample).to(options.device), torch.randn(right, *case.sample).to(options.device)
    work = {
        "ours": lambda: finished(tangent_kernel(there, *sides, batch_size=options.batch), options.device),
        "torch.func": lambda: finished(by_func(there, *sides, case.peer), options.device),
    }
    between = difference(work["ours"](), work["torch.func"]())
    seconds = take_turns(work, options.repeats)
    cpu = case.build().eval()
    on_cpu = timed(lambda: tangent_kernel(cpu, sides[0][: left // ONE_IN].cpu(), sides[1][: right // ONE_IN].cpu())) * ONE_IN
    middle = medians(seconds)
    return {
        "samples": [left, right],
        "float32 there against float64 on the CPU": difference(narrow, exact),
        "float32 on the CPU against float64 on the CPU": difference(single, exact),
        "float64 there against float64 on the CPU": difference(wide, exact),
        "float32 against torch.func": between,
        "seconds": middle,
        "cpu_seconds_scaled": on_cpu,
        "times as fast as torch.func": middle["torch.func"] / middle["ours"],
        "turns": seconds,
    }


def by_func(model: nn.Module, left: Tensor, right: Tensor, batch: int) -> Tensor:
    """Gradients of the shorter side are kept, those of the longer one streamed."""

    def gradients(samples: Tensor) -> Tensor:
        return per_sample_gradients(model, lambda output, _: output.sum(), samples, samples)

    kept = torch.cat([gradients(some) for some in right.split(batch)]).T
    return torch.cat([gradients(some) @ kept for some in left.split(batch)])


def finished(value: Tensor, device: str) -> Tensor:
    if device == "cuda":
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()
    return value


def demo(workspace: Workspace, device: str) -> dict[str, Any]:
    """Influences of the demo's run, its training one and the same."""
    job = workspace.queue.submit("demo", {"material": "box", "frequency": "1000hz"}, title="SIMULATED demo", who="benchmark")
    run = workspace.run(workspace.queue.wait(job.id).result["run_id"])
    return compared(workspace, run.recipe.to_dict(), {"batch_size": 64}, device)


def digits(workspace: Workspace, device: str) -> dict[str, Any]:
    """Influences of 1,000 digits by EKFAC, the training one and the same."""
    folder = workspace.root / "recordings" / "digits"
    write_digits(folder, count=1_000, wrong=0)
    told = {
        "name": "digits",
        "data": {"kind": "arrays", "file": folder / "digits.npz"},
        "model": {"kind": "mlp", "inputs": 784, "hidden": [128], "outputs": 10},
        "task": {"kind": "classification"},
        "split": {"rule": "column", "column": "side"},
        "checkpoints": {"folder": workspace.root / "trainings" / "digits"},
    }
    job = workspace.start_training(Recipe.from_dict(told), settings={"epochs": 5}, folder=told["checkpoints"]["folder"])
    workspace.queue.wait(job.id)
    return compared(workspace, told, {"precondition": "ekfac", "damping": 1.0}, device)


def compared(workspace: Workspace, told: dict[str, Any], engine: dict[str, Any], device: str) -> dict[str, Any]:
    """The run's influences on the device against those on the CPU."""
    seconds, scores = {}, {}
    for name in ("cpu", device):
        recipe = Recipe.from_dict({**told, "name": f"on {name}", "engine": {**engine, "device": name}})
        seconds[name] = timed(lambda recipe=recipe: workspace.compute(recipe))
        scores[name] = workspace.compute(recipe).view().influence()
    apart = np.abs(scores["cpu"] - scores[device]).max() / np.abs(scores["cpu"]).max()
    return {
        "influences": list(scores["cpu"].shape),
        "largest difference of influence": float(apart),
        "seconds with the worker's start": seconds,
    }


def name_of(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else device


if __name__ == "__main__":
    main()
