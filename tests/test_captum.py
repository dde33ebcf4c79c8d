"""The same pair influences as Captum's TracInCP, which differentiates every pair's loss by itself."""

from itertools import combinations
from pathlib import Path

import pytest
import torch
from captum.influence import TracInCP
from engine_cases import FLOAT64, Case, image, model_of
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from tracin_core.engine.kernel import model_outputs, tangent_kernel
from tracin_core.engine.models import Ranker

MARGIN = 0.4


class PairGap(nn.Module):
    """The score difference of pairs `[N, 2, 1, F, T]`, as a model that Captum can take."""

    def __init__(self, ranker: nn.Module) -> None:
        super().__init__()
        self.ranker = ranker

    def forward(self, pairs: Tensor) -> Tensor:
        return (self.ranker(pairs[:, 0]) - self.ranker(pairs[:, 1])).squeeze(1)


class PairLoss(nn.Module):
    """max(0, margin - t * gap), per pair; Captum reads `reduction`."""

    reduction = "none"

    def forward(self, gap: Tensor, target: Tensor) -> Tensor:
        return torch.clamp(MARGIN - target * gap, min=0)


def pairs_of(samples: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Positions `[N, 2]` of all pairs, their inputs and their targets."""
    positions = torch.tensor(list(combinations(range(len(samples)), 2)))
    return positions, samples[positions], torch.where(positions.sum(1) % 2 == 0, 1.0, -1.0).double()


@pytest.mark.parametrize("layout", ["small", "large"])
def test_pair_influence_equals_captum(layout: str, tmp_path: Path) -> None:
    """Summed over two checkpoints, with every train pair against every test pair."""
    draw = image(1, 33, 70) if layout == "small" else image(1, 129, 258)
    models = [model_of(Case(lambda: Ranker(layout), draw), seed) for seed in (0, 1)]
    torch.manual_seed(5)
    train, test = draw(5), draw(4)
    (here, train_pairs, train_targets), (there, test_pairs, test_targets) = pairs_of(train), pairs_of(test)
    files = [str(tmp_path / f"{epoch}.pt") for epoch in (1, 2)]
    for model, file in zip(models, files, strict=True):
        torch.save(PairGap(model).state_dict(), file)

    def load(model: nn.Module, file: str) -> float:
        model.load_state_dict(torch.load(file, weights_only=True))
        return 1.0

    peer = TracInCP(
        PairGap(Ranker(layout).double()).eval(),
        TensorDataset(train_pairs, train_targets),
        files,
        checkpoints_load_func=load,
        loss_fn=PairLoss(),
        batch_size=4,
        sample_wise_grads_per_batch=False,
    )
    expected = peer.influence((test_pairs, test_targets))

    influence = torch.zeros(len(here), len(there), dtype=torch.float64)
    for model in models:
        kernel = tangent_kernel(model, train, test)
        pair_kernel = kernel[here[:, 0]] - kernel[here[:, 1]]
        pair_kernel = pair_kernel[:, there[:, 0]] - pair_kernel[:, there[:, 1]]
        ours = derivative(model, train, here, train_targets)
        influence += ours[:, None] * derivative(model, test, there, test_targets) * pair_kernel
    assert (influence != 0).double().mean() > 0.2
    torch.testing.assert_close(expected.T, influence, **FLOAT64)


def derivative(model: nn.Module, samples: Tensor, positions: Tensor, targets: Tensor) -> Tensor:
    """dL/d(first score) of each pair's margin loss; the second score's is its negative."""
    scores = model_outputs(model, samples).flatten()
    gaps = scores[positions[:, 0]] - scores[positions[:, 1]]
    return torch.where(MARGIN - targets * gaps >= 0, -targets, 0.0)
