"""The networks that checkpoints belong to: rankers that give a recording one number, larger for a larger angle."""

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from tracin_core.recipe import ModelSection

Layout = Literal["small", "large"]

SILENCE = 1e-8  # keeps a constant input finite; far below any spectrogram's spread


class Ranker(nn.Module):
    """A small convolutional network that scores one spectrogram.

    `small` has 5,733 parameters (channels 32, 16; head 16-10-1), `large` 422,337 (channels 32, 64, 128, 256; head
    256-128-1). Layers are named as in the published checkpoints: `features.*` and `classifier.*`.
    """

    def __init__(self, layout: Layout = "small") -> None:
        super().__init__()
        first = nn.Conv2d(1, 32, kernel_size=5, stride=(2, 4), padding=2)
        if layout == "small":
            convolutions = [first, nn.Conv2d(32, 16, kernel_size=3, stride=2, padding=1)]
            hidden = 10
        else:
            widths = [32, 64, 128, 256]
            convolutions = [first] + [nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths)]
            hidden = 128
        blocks = [[c, nn.BatchNorm2d(c.out_channels), nn.ReLU(), nn.MaxPool2d(2)] for c in convolutions]
        self.features = nn.Sequential(*(layer for block in blocks for layer in block))
        width = convolutions[-1].out_channels
        self.classifier = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, spectra: Tensor) -> Tensor:
        """Scores `[N, 1]` of spectra `[N, 1, F, T]`.

        Each spectrum is standardised by its own mean and standard deviation, so that no score depends on the other
        samples of its batch.
        """
        deviation, mean = torch.std_mean(spectra, dim=(1, 2, 3), keepdim=True)
        features = self.features((spectra - mean) / (deviation + SILENCE))
        scores: Tensor = self.classifier(features.mean(dim=(2, 3)))
        return scores


def build_model(section: ModelSection) -> nn.Module:
    """The recipe's network in eval mode, with fresh weights from torch's random generator."""
    return Ranker(section.layout).eval()
