"""The kernel of 512 x 256 sequences of a small transformer encoder (2 layers, width 128, 64 positions). One line of JSON.

    python benchmarks/transformer.py [--repeats 3]

Ours and `torch.func` are measured whole. Captum's exact setting differentiates one sample at a time, so its time grows with N + M; it is
measured on 16 + 16 sequences and scaled. (Its sample-wise trick knows Linear and Conv2d only and leaves attention and normalisation out.)
"""

import argparse
import tempfile
from pathlib import Path

import torch
from captum.influence import TracInCP
from common import Encoder, difference, medians, per_sample_gradients, report, take_turns
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tracin_core.engine.kernel import coverage, tangent_kernel

LEFT, RIGHT, FEW, BATCH = 512, 256, 16, 32


class Itself(nn.Module):
    """The output as its own loss."""

    reduction = "none"

    def forward(self, output: Tensor, _: Tensor) -> Tensor:
        return output


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.manual_seed(0)
    model = Encoder().eval()
    left, right = torch.randn(LEFT, 64, 128), torch.randn(RIGHT, 64, 128)
    captum = by_captum(model, left[:FEW], right[:FEW])
    work = {"ours": lambda: tangent_kernel(model, left, right), "torch.func": lambda: by_func(model, left, right), "captum": captum}
    kernel = work["ours"]()
    differences = {
        "torch.func": difference(by_func(model, left, right), kernel),
        "captum": difference(captum(), kernel[:FEW, :FEW]),
    }
    seconds = take_turns(work, options.repeats)
    middle = medians(seconds)
    middle["captum"] *= (LEFT + RIGHT) / (2 * FEW)
    best = min(("torch.func", "captum"), key=lambda name: middle[name])
    report(
        "transformer",
        ["captum"],
        data=f"SIMULATED {LEFT} x {RIGHT} sequences of 64 x 128, encoder of {sum(p.numel() for p in model.parameters())} parameters",
        seconds=middle,
        captum_scaled=f"from {FEW} + {FEW} sequences, by (N + M) / (n + m)",
        best_peer=best,
        ratio=middle[best] / middle["ours"],
        target="at least 2",
        largest_difference=differences,
        paths=sorted({path for _, path in coverage(model, left[:4])}),
        turns=seconds,
    )


def by_func(model: nn.Module, left: Tensor, right: Tensor) -> Tensor:
    """All gradients, then one product."""

    def gradients(samples: Tensor) -> Tensor:
        parts = [per_sample_gradients(model, lambda output, _: output, batch, batch) for batch in samples.split(BATCH)]
        return torch.cat(parts)

    return gradients(left) @ gradients(right).T


def by_captum(model: nn.Module, left: Tensor, right: Tensor):
    folder = Path(tempfile.mkdtemp())
    torch.save(model.state_dict(), folder / "checkpoint.pt")

    def load(loaded: nn.Module, path: str) -> float:
        loaded.load_state_dict(torch.load(path, weights_only=True))
        return 1.0

    tracin = TracInCP(
        Encoder().eval(),
        DataLoader(TensorDataset(left, torch.zeros(len(left))), batch_size=1),
        [str(folder / "checkpoint.pt")],
        checkpoints_load_func=load,
        loss_fn=Itself(),
        sample_wise_grads_per_batch=False,
    )
    tests = DataLoader(TensorDataset(right, torch.zeros(len(right))), batch_size=1)
    return lambda: tracin.influence(tests).T


if __name__ == "__main__":
    main()
