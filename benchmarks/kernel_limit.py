"""The kernel of 512 x 256 samples against what no exact method can avoid. One line of JSON.

    python benchmarks/kernel_limit.py [--size 128] [--repeats 5]

The limit: one plain training pass (forward and backward in batches of 32) over the same 768 samples, and the bare product of two
matrices of 512 and 256 gradients. Model: the ranker of 422,337 parameters on SIMULATED spectra of size x size.
"""

import argparse

import torch
from common import medians, report, take_turns

from tracin_core.engine.kernel import tangent_kernel
from tracin_core.engine.models import Ranker

BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.manual_seed(0)
    model = Ranker("large_resized")
    left, right = (torch.randn(count, 1, options.size, options.size) for count in (512, 256))
    entries = sum(parameter.numel() for parameter in model.parameters())
    rows, columns = torch.randn(512, entries), torch.randn(256, entries)

    def training_pass() -> None:
        model.train()
        for batch in (*left.split(BATCH), *right.split(BATCH)):
            model.zero_grad()
            model(batch).sum().backward()
        model.zero_grad()
        model.eval()

    work = {
        "kernel": lambda: tangent_kernel(model.eval(), left, right),
        "training_pass": training_pass,
        "matrix_product": lambda: rows @ columns.T,
    }
    take_turns(work, 1)  # one-off initialisation
    seconds = take_turns(work, options.repeats)
    middle = medians(seconds)
    ratios = [k / (p + m) for k, p, m in zip(*seconds.values(), strict=True)]
    report(
        "kernel_limit",
        data=f"SIMULATED 512 x 256 samples of {options.size} x {options.size}, ranker of {entries} parameters",
        seconds=middle,
        ratio=middle["kernel"] / (middle["training_pass"] + middle["matrix_product"]),
        ratio_of_each_turn=ratios,
        target="at most 1.5",
        turns=seconds,
    )


if __name__ == "__main__":
    main()
