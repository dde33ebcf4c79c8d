"""How the cost of all pairs grows: 100, 200, 400 and 800 samples. One line of JSON.

    python benchmarks/growth.py [--size 96] [--repeats 3]

800 samples have 319,600 unordered pairs, 65 times those of 100. A pair needs no gradient of its own: samples are differentiated, once each,
and pairs are algebra on their kernel. Timed is what all pair self-influences need, |g_i - g_j|^2 for every pair: the kernel of the samples
against themselves, and the algebra. Model: the ranker of 422,337 parameters on SIMULATED spectra.
"""

import argparse
import math

import torch
from common import medians, report, take_turns

from tracin_core.engine.kernel import memory_estimate, tangent_kernel
from tracin_core.engine.models import Ranker

COUNTS = (100, 200, 400, 800)
TOGETHER = 160  # samples that the engine multiplies at once here


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.manual_seed(0)
    model, samples = Ranker("large_resized").eval(), torch.randn(max(COUNTS), 1, options.size, options.size)
    entries = sum(parameter.numel() for parameter in model.parameters())
    gradients = torch.randn(max(COUNTS), entries)

    def pairs(count: int) -> torch.Tensor:
        kernel = tangent_kernel(model, samples[:count]).double()
        return kernel.diag()[:, None] + kernel.diag() - 2 * kernel

    def product(count: int) -> None:
        for start in range(0, count, TOGETHER):  # on and above the diagonal
            gradients[start : min(start + TOGETHER, count)] @ gradients[start:count].T

    pairs(100)
    work = {f"pairs {n}": lambda n=n: pairs(n) for n in COUNTS} | {f"product {n}": lambda n=n: product(n) for n in COUNTS}
    seconds = take_turns(work, options.repeats)
    middle = medians(seconds)
    without = {n: middle[f"pairs {n}"] - middle[f"product {n}"] for n in COUNTS}
    report(
        "growth",
        data=f"SIMULATED spectra of {options.size} x {options.size}, ranker of {entries} parameters, samples against themselves",
        samples=COUNTS,
        pairs=[math.comb(n, 2) for n in COUNTS],
        samples_differentiated=[memory_estimate(model, samples[:n]).differentiated for n in COUNTS],
        seconds=[middle[f"pairs {n}"] for n in COUNTS],
        of_which_matrix_product=[middle[f"product {n}"] for n in COUNTS],
        milliseconds_per_sample=[1000 * middle[f"pairs {n}"] / n for n in COUNTS],
        exponent=math.log(middle["pairs 800"] / middle["pairs 100"]) / math.log(8),
        exponent_without_product=math.log(without[800] / without[100]) / math.log(8),
        target="exponent without the product about 1; quadratic would be 2",
        turns=seconds,
    )


if __name__ == "__main__":
    main()
