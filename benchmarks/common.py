"""What every benchmark shares: turns that alternate, and the line of JSON that is printed."""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def take_turns(work: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Wall seconds of each turn; all kinds of work alternate, so that other load on the machine falls on all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(repeats):
        for name, run in work.items():
            seconds[name].append(timed(run))
        tell(f"turn {turn + 1} of {repeats}: " + ", ".join(f"{name} {taken[-1]:.2f} s" for name, taken in seconds.items()))
    return seconds


def timed(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def medians(seconds: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def report(benchmark: str, packages: Sequence[str] = (), **findings: Any) -> None:
    """The one line on stdout."""
    machine = {
        "cpu": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "load": round(os.getloadavg()[0], 1),  # above the number of threads: the machine had other work, and medians mean little
        "system": f"{platform.system()} {platform.machine()}",
    }
    versions = {"python": platform.python_version(), **{name: version(name) for name in ("torch", "numpy", *packages)}}
    print(json.dumps({"benchmark": benchmark, **rounded(findings), "machine": machine, "versions": versions}), flush=True)


def rounded(value: Any) -> Any:
    """Four digits of every number inside."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, Mapping):
        return {key: rounded(inner) for key, inner in value.items()}
    return [rounded(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        asked = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False)
        return asked.stdout.strip() or platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def tell(line: str) -> None:
    """Progress goes to stderr, so that stdout is the line of JSON alone."""
    print(f"{Path(sys.argv[0]).stem}: {line}", file=sys.stderr, flush=True)


def extrapolated(few: float, many: float, sizes: tuple[int, int], whole: int) -> float:
    """Seconds for `whole` samples by the line through two measured sizes: what each further sample costs, and a fixed part."""
    slope = (many - few) / (sizes[1] - sizes[0])
    return many + slope * (whole - sizes[1])


def difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest, relative to the largest entry."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


def per_sample_gradients(model: nn.Module, response: Callable[[Tensor, Tensor], Tensor], inputs: Tensor, labels: Tensor) -> Tensor:
    """`[n, P]` by `torch.func`: what a careful user of plain PyTorch writes."""
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def alone(chosen: dict[str, Tensor], sample: Tensor, label: Tensor) -> Tensor:
        return response(functional_call(model, chosen, (sample[None],))[0], label)

    gradients = vmap(grad(alone), in_dims=(None, 0, 0))(weights, inputs, labels)
    return torch.cat([gradient.flatten(1) for gradient in gradients.values()], 1)


class Encoder(nn.Module):
    """Two layers of 4 heads and 512 hidden units; the mean position gives one number."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(128, 4, 512, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(128, 1)

    def forward(self, sequences: Tensor) -> Tensor:
        return self.head(self.encoder(sequences).mean(1)).squeeze(1)
