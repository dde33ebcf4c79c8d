"""A kernel of 20,000 x 2,000 samples in 4 GiB of memory. One line of JSON.

    python benchmarks/memory.py [--rows 20000] [--columns 2000] [--limit-gib 4]

A child process makes SIMULATED spectra of 96 x 96 and computes the kernel of the ranker of 422,337 parameters, whose gradients would take
37 GB; this process looks at the child's resident memory twenty times a second. The child asks for an estimate first, and gives the engine
what the limit leaves after that and after what is there already.
"""

import argparse
import subprocess
import sys
import time

import psutil
import torch
from common import report, tell

from tracin_core.engine.kernel import memory_estimate, tangent_kernel
from tracin_core.engine.models import Ranker

GIB = 2**30
SLACK = GIB // 4  # what the allocator keeps of freed memory, and the libraries' own buffers


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--columns", type=int, default=2_000)
    parser.add_argument("--limit-gib", type=float, default=4.0)
    parser.add_argument("--child", action="store_true", help="compute; for internal use")
    options = parser.parse_args()
    if options.child:
        compute(options)
        return
    command = [sys.executable, __file__, "--child", *sys.argv[1:]]
    started, peak = time.perf_counter(), 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        watched = psutil.Process(child.pid)
        while child.poll() is None:
            try:
                peak = max(peak, watched.memory_info().rss)
            except psutil.NoSuchProcess:
                break
            time.sleep(0.05)
        told = child.stdout.read().split() if child.stdout else []
    if child.returncode:
        raise SystemExit(f"the computation ended with status {child.returncode}")
    differentiated, budget = map(int, told)
    report(
        "memory",
        data=f"SIMULATED {options.rows} x {options.columns} spectra of 96 x 96, ranker of 422337 parameters",
        peak_gib=peak / GIB,
        limit_gib=options.limit_gib,
        within=peak <= options.limit_gib * GIB,
        seconds=time.perf_counter() - started,
        samples_differentiated=differentiated,
        gradient_budget_gib=budget / GIB,
        gradients_would_take_gib=(options.rows + options.columns) * 422_337 * 4 / GIB,
    )


def compute(options: argparse.Namespace) -> None:
    torch.manual_seed(0)
    model = Ranker("large_resized").eval()
    left, right = (torch.randn(count, 1, 96, 96) for count in (options.rows, options.columns))
    tangent_kernel(model, left[:64], right[:64])  # code and buffers are there before the rest is shared out
    expected = memory_estimate(model, left, right)
    there = psutil.Process().memory_info().rss
    budget = int(options.limit_gib * GIB) - there - expected.kernel - expected.batch - SLACK
    plan = memory_estimate(model, left, right, memory_budget=budget)
    parts = {"resident": there, "kernel": expected.kernel, "batch": expected.batch, "gradients": budget}
    tell(", ".join(f"{name} {size / GIB:.2f} GiB" for name, size in parts.items()))
    tangent_kernel(model, left, right, memory_budget=budget)
    print(plan.differentiated, budget)


if __name__ == "__main__":
    main()
