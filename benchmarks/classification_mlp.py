"""Cross-entropy influence of 10,000 training samples on 1,000 test samples, MLP 784-512-512-10. One line of JSON.

    python benchmarks/classification_mlp.py [--repeats 3]

Ours is measured whole: outputs, the kernel of logit(p_y), and the scaling that makes it cross-entropy's. Captum and `torch.func` are
measured on 200 and on 600 training samples, always with all 1,000 test samples, and extrapolated by the line through the two: what each
further training sample costs them, with the test side paid once. dattri is measured on 100 x 100 and scaled by the samples, N + M, as if it
did not differentiate the test samples again for every training batch, and as if products were free: in its favour.
"""

import argparse

import mlp
import torch
from common import difference, extrapolated, medians, report, take_turns

from tracin_core.engine.classification import logit_kernel
from tracin_core.engine.kernel import model_outputs

TRAIN, TEST, SIZES, FEW = 10_000, 1_000, (200, 600), 100


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    model, train, test = mlp.build(), mlp.draw(TRAIN, 1), mlp.draw(TEST, 2)

    def ours() -> torch.Tensor:
        kernel = logit_kernel(model, train[0], train[1], test[0], test[1], batch_size=500)
        left, right = (mlp.wrongness(model_outputs(model, inputs, 500), labels) for inputs, labels in (train, test))
        return left[:, None] * right * kernel

    def first(samples: tuple[torch.Tensor, torch.Tensor], count: int) -> tuple[torch.Tensor, torch.Tensor]:
        return samples[0][:count], samples[1][:count]

    lines = {"captum": mlp.by_captum, "torch.func": mlp.by_func}
    work = {"ours": ours, "dattri": mlp.by_dattri(model, first(train, FEW), first(test, FEW))}
    work |= {f"{name} {size}": peer(model, first(train, size), test) for name, peer in lines.items() for size in SIZES}
    expected = ours()
    differences = {name: difference(work[f"{name} {SIZES[0]}"](), expected[: SIZES[0]]) for name in lines}
    differences["dattri"] = difference(work["dattri"](), expected[:FEW, :FEW])
    seconds = take_turns(work, options.repeats)
    middle = medians(seconds)
    whole = {name: extrapolated(middle[f"{name} {SIZES[0]}"], middle[f"{name} {SIZES[1]}"], SIZES, TRAIN) for name in lines}
    whole["dattri"] = middle["dattri"] * (TRAIN + TEST) / (2 * FEW)
    best = min(whole, key=lambda name: whole[name])
    report(
        "classification_mlp",
        ["captum", "dattri"],
        data=f"SIMULATED {TRAIN} x {TEST} images of 28 x 28, MLP 784-512-512-10, cross-entropy",
        ours_seconds=middle["ours"],
        peers_seconds=whole,
        peers_scaled=f"from {SIZES[0]} and {SIZES[1]} training samples, linearly; dattri from {FEW} x {FEW} by N + M",
        best_peer=best,
        ratio=whole[best] / middle["ours"],
        target="at least 5",
        largest_difference=differences,
        turns=seconds,
    )


if __name__ == "__main__":
    main()
