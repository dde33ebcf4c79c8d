"""All 19,900 pairs of 200 samples x 200 test pairs x 3 checkpoints, ranker of 422,337 parameters at 128 x 128. One line of JSON.

    python benchmarks/all_pairs_large.py [--captum-pairs 64] [--repeats 3]

Ours is measured whole: for each checkpoint the outputs and the kernel of 200 training against 40 test samples, then the algebra of all
pairs. Captum is measured on 64 training and 64 test pairs, and scaled by the pairs that it differentiates, (19,900 + 200) / (64 + 64).

Captum's fast setting, `sample_wise_grads_per_batch=True`, is timed on a wrapper that takes a pair's difference in two calls. Its numbers
are of something else: it leaves the gradients of BatchNorm out without a word, and a layer that is called twice confuses it. Its exact
setting is timed beside it, and is what our numbers are compared with.
"""

import argparse
import tempfile
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import torch
from captum.influence import TracInCP
from common import difference, medians, report, take_turns, tell
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tracin_core.engine.kernel import model_outputs, tangent_kernel
from tracin_core.engine.models import Ranker

TRAIN, TEST, TEST_PAIRS, CHECKPOINTS, SIZE, MARGIN = 200, 40, 200, 3, 128, 10.0
Pairs = tuple[Tensor, Tensor]  # positions [N, 2] and targets [N]


class PairGap(nn.Module):
    """The score difference of pairs `[N, 2, 1, F, T]`."""

    def __init__(self) -> None:
        super().__init__()
        self.ranker = Ranker("large_resized").eval()

    def forward(self, pairs: Tensor) -> Tensor:
        return (self.ranker(pairs[:, 0]) - self.ranker(pairs[:, 1])).squeeze(1)


class MarginLoss(nn.Module):
    def __init__(self, reduction: str) -> None:
        super().__init__()
        self.reduction = reduction

    def forward(self, gap: Tensor, target: Tensor) -> Tensor:
        losses = torch.clamp(MARGIN - target * gap, min=0)
        return losses.sum() if self.reduction == "sum" else losses


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--captum-pairs", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.manual_seed(0)
    models = [PairGap() for _ in range(CHECKPOINTS)]
    train, test = torch.randn(TRAIN, 1, SIZE, SIZE), torch.randn(TEST, 1, SIZE, SIZE)
    train_pairs, test_pairs = all_pairs(TRAIN), some_pairs(all_pairs(TEST), TEST_PAIRS)
    few, few_tests = some_pairs(train_pairs, options.captum_pairs), some_pairs(test_pairs, options.captum_pairs)
    exact, fast = (by_captum(models, train, test, few, few_tests, trick) for trick in (False, True))
    work = {"ours": lambda: by_kernels(models, train, test, train_pairs, test_pairs), "captum exact": exact, "captum fast": fast}
    ours = by_kernels(models, train, test, few, few_tests)
    differences = {"captum exact": difference(ours, exact())}
    try:
        differences["captum fast"] = difference(ours, fast())
    except Exception as refusal:
        tell(f"captum's fast setting fails: {refusal!r}"[:300])
        del work["captum fast"]
    seconds = take_turns(work, options.repeats)
    middle = medians(seconds)
    scale = (len(train_pairs[0]) + len(test_pairs[0])) / (len(few[0]) + len(few_tests[0]))
    whole = {name: middle[name] * scale for name in differences}
    report(
        "all_pairs_large",
        ["captum"],
        data=f"SIMULATED spectra of {SIZE} x {SIZE}, {len(train_pairs[0])} x {len(test_pairs[0])} pairs, {CHECKPOINTS} checkpoints",
        ours_seconds=middle["ours"],
        captum_seconds=whole,
        captum_measured_seconds={name: middle[name] for name in differences},
        captum_scaled=f"from {len(few[0])} + {len(few_tests[0])} pairs, by (N + M) / (n + m) = {scale:.1f}",
        ratio={name: taken / middle["ours"] for name, taken in whole.items()},
        target="at least 200",
        largest_difference=differences,
        turns=seconds,
    )


def all_pairs(count: int) -> Pairs:
    positions = torch.tensor(list(combinations(range(count), 2)))
    return positions, torch.where(positions.sum(1) % 2 == 0, 1.0, -1.0)


def some_pairs(pairs: Pairs, count: int) -> Pairs:
    """Evenly from among them."""
    rows = torch.linspace(0, len(pairs[0]) - 1, count).long()
    return pairs[0][rows], pairs[1][rows]


def by_kernels(models: list[PairGap], train: Tensor, test: Tensor, train_pairs: Pairs, test_pairs: Pairs) -> Tensor:
    """`[train pairs, test pairs]`: sum over checkpoints of a_e a_e' (K_ip - K_iq - K_jp + K_jq)."""
    total = torch.zeros(len(train_pairs[0]), len(test_pairs[0]))
    (i, j), (p, q) = train_pairs[0].T, test_pairs[0].T
    for model in models:
        kernel = tangent_kernel(model.ranker, train, test)
        columns = slopes(model.ranker, test, test_pairs) * (kernel[:, p] - kernel[:, q])
        total += slopes(model.ranker, train, train_pairs)[:, None] * (columns[i] - columns[j])
    return total


def slopes(ranker: nn.Module, samples: Tensor, pairs: Pairs) -> Tensor:
    """dL/d(score difference) of the margin loss."""
    scores = model_outputs(ranker, samples).flatten()
    gaps = scores[pairs[0][:, 0]] - scores[pairs[0][:, 1]]
    return torch.where(MARGIN - pairs[1] * gaps >= 0, -pairs[1], 0.0)


def by_captum(
    models: list[PairGap], train: Tensor, test: Tensor, train_pairs: Pairs, test_pairs: Pairs, trick: bool
) -> Callable[[], Tensor]:
    folder = Path(tempfile.mkdtemp())
    files = [str(folder / f"{place}.pt") for place in range(len(models))]
    for model, file in zip(models, files, strict=True):
        torch.save(model.state_dict(), file)

    def load(loaded: nn.Module, path: str) -> float:
        loaded.load_state_dict(torch.load(path, weights_only=True))
        return 1.0

    def loader(samples: Tensor, pairs: Pairs) -> DataLoader:
        return DataLoader(TensorDataset(samples[pairs[0]], pairs[1]), batch_size=16 if trick else 1)

    tracin = TracInCP(
        PairGap(),
        loader(train, train_pairs),
        files,
        checkpoints_load_func=load,
        loss_fn=MarginLoss("sum" if trick else "none"),
        sample_wise_grads_per_batch=trick,
    )
    tests = loader(test, test_pairs)
    return lambda: tracin.influence(tests).T


if __name__ == "__main__":
    main()
