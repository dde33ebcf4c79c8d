"""A plugin of TracIn Studio: copy it to `plugins/<name>.py` in the workspace and change it. docs/your-model.md says what each part must do.

As it stands it runs: a small network that tells two kinds of short sounds apart. Keep `build` for a model, `dataset` for data, or both.
"""

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

RATE = 8_000  # values per second


def build(width: int = 16, outputs: int = 2) -> nn.Module:
    """The model, with any weights: those of each checkpoint are loaded into it.

    Give [N, outputs], and let each row depend on its own sample alone.
    """
    return nn.Sequential(
        nn.Conv1d(1, width, kernel_size=9, stride=4),
        nn.ReLU(),
        nn.Conv1d(width, width, kernel_size=9, stride=4),
        nn.ReLU(),
        nn.AdaptiveAvgPool1d(4),
        nn.Flatten(),
        nn.Linear(4 * width, outputs),
    )


def dataset(count: int = 60, seed: int = 0) -> Dataset:
    """The data: the same samples in the same order each time."""
    return Sounds(count, seed)


class Sounds(Dataset):
    """Low tones and high tones, in some noise."""

    def __init__(self, count: int, seed: int) -> None:
        self.generator_seed = seed
        self.ids = [f"sound_{number:03d}" for number in range(count)]  # without it, samples are called row0, row1, ...

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, number: int) -> tuple[Tensor, str, dict[str, float]]:
        """One Tensor, what is wanted of the model (a name, a whole number, or a number to meet), and what else you know."""
        generator = torch.Generator().manual_seed(self.generator_seed * 100_003 + number)
        high = number % 2 == 1
        pitch = (600 if high else 200) * (1 + 0.5 * float(torch.rand(1, generator=generator)))
        seconds = torch.arange(RATE // 8) / RATE
        wave = 0.5 * torch.sin(2 * torch.pi * pitch * seconds) + 0.05 * torch.randn(len(seconds), generator=generator)
        return wave[None], "high" if high else "low", {"pitch": round(pitch, 1)}


def preview(sample: Tensor) -> tuple[Tensor, int]:
    """How a sample is shown: a PIL image, some text, or sound with its rate. Leave it out for a picture of the values."""
    return sample[0], RATE
