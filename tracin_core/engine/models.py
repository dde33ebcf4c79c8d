"""The networks that checkpoints belong to: the lab's rankers, three common kinds, and whatever a plugin builds.

All give `[N, outputs]`, and each sample's row depends on that sample alone: a layer that mixes the samples of a batch in training, or draws
at random, would give each gradient a part that belongs to no sample.
"""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import torch
from torch import Tensor, nn

from tracin_core.engine.plugins import plugin_model
from tracin_core.errors import DataError, RecipeError
from tracin_core.recipe import CnnModel, MlpModel, ModelSection, PluginModel, RankerModel, TransformerModel

Layout = Literal["small", "large", "large_dropout", "large_resized"]

GRID = 4  # fields on a side, over which a cnn takes means
PICTURES = 4  # axes of a batch of pictures
SILENCE = 1e-8  # keeps a constant input finite; far below any spectrogram's spread


class Form(NamedTuple):
    """What tells the published rankers apart. Names and shapes of tensors follow from it; strides are in no file of weights."""

    widths: tuple[int, ...]
    strides: tuple[int | tuple[int, int], ...]
    hidden: int
    dropout: bool = False
    side: int | None = None  # spectra are resized to side x side, bilinearly, before they are standardised


WIDE = (32, 64, 128, 256)
FORMS: Final[dict[Layout, Form]] = {
    "small": Form((32, 16), ((2, 4), 2), 10),
    "large": Form(WIDE, ((2, 4), 2, 2, 1), 128),
    "large_dropout": Form(WIDE, ((2, 4), 2, 2, 1), 128, dropout=True),
    "large_resized": Form(WIDE, (2, 1, 1, 1), 128, dropout=True, side=128),
}


class Ranker(nn.Module):
    """A convolutional network that scores one spectrogram, in one of the published layouts.

    `small` has 5,733 parameters, the others 422,337. Layers are named as in the published checkpoints: `features.*` and `classifier.*`.
    The weights of `large_dropout` and `large_resized` have the same names and shapes: only who trained them knows which they are.
    """

    def __init__(self, layout: Layout = "small") -> None:
        super().__init__()
        form = FORMS[layout]
        self.side = form.side
        sizes = zip(pairwise([1, *form.widths]), form.strides, strict=True)
        convolutions = [
            nn.Conv2d(a, b, kernel_size=3 if place else 5, stride=stride, padding=1 if place else 2)
            for place, ((a, b), stride) in enumerate(sizes)
        ]
        blocks = [[c, nn.BatchNorm2d(c.out_channels), nn.ReLU(), nn.MaxPool2d(2)] for c in convolutions]
        self.features = nn.Sequential(*(layer for block in blocks for layer in block))
        head = [nn.Linear(form.widths[-1], form.hidden), nn.ReLU(), *([nn.Dropout(0.5)] if form.dropout else [])]
        self.classifier = nn.Sequential(*head, nn.Linear(form.hidden, 1))

    def forward(self, spectra: Tensor) -> Tensor:
        """Scores `[N, 1]` of spectra `[N, 1, F, T]`, each spectrum standardised."""
        if self.side is not None:
            spectra = nn.functional.interpolate(spectra, size=(self.side, self.side), mode="bilinear", align_corners=False)
        features = self.features(standardised(spectra))
        scores: Tensor = self.classifier(features.mean(dim=(2, 3)))
        return scores


class Mlp(nn.Module):
    """Linear layers with ReLU between them, on a sample's values in a row.

    Values are first shifted and scaled by two buffers, 0 and 1 until `fit` sets them. They are constants of the checkpoint, like the
    running statistics of batch normalisation: no gradient, and no part in any score.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, section: MlpModel) -> None:
        super().__init__()
        widths = [section.inputs, *section.hidden]
        self.register_buffer("mean", torch.zeros(section.inputs))
        self.register_buffer("deviation", torch.ones(section.inputs))
        hidden = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())]
        self.layers = nn.Sequential(*hidden, nn.Linear(widths[-1], section.outputs))

    def fit(self, inputs: Tensor) -> None:
        """The buffers are mean and standard deviation over these samples; what never changes is not scaled.

        Columns of a table come in units of their own, and each is scaled by its own. The values of pictures `[N, channels, height, width]`
        have one unit, and share both: scaled singly, points that are almost always empty would outweigh all others where they are not.
        """
        rows = self.rows(inputs).to(self.mean)
        deviation, mean = torch.std_mean(rows, dim=None if inputs.ndim == PICTURES else 0, correction=0)
        self.mean.copy_(mean)
        self.deviation.copy_(torch.where(deviation > SILENCE * (1 + mean.abs()), deviation, torch.ones_like(deviation)))

    def forward(self, inputs: Tensor) -> Tensor:
        """`[N, outputs]` of samples of any shape with the right number of values."""
        outputs: Tensor = self.layers((self.rows(inputs) - self.mean) / self.deviation)
        return outputs

    def rows(self, inputs: Tensor) -> Tensor:
        rows = inputs.flatten(1)
        if rows.shape[1] != len(self.mean):
            raise DataError(
                f"Samples of shape {shape_of(inputs)} have {rows.shape[1]} values, but the mlp takes {len(self.mean)}; "
                f"write inputs = {rows.shape[1]} under [model]."
            )
        return rows


class Cnn(nn.Module):
    """Per width a 3 x 3 convolution, group normalisation (one group: Wu, He 2018, arXiv 1803.08494), ReLU and a maximum over 2 x 2 places;
    then the mean over each field of a 4 x 4 grid and a linear layer.

    The grid keeps where something is, whatever the size: a mean over all places would not tell a 6 from a 9. Group normalisation is of
    each sample by itself, in training too.
    """

    def __init__(self, section: CnnModel) -> None:
        super().__init__()
        self.channels = section.channels
        blocks = [
            # partial windows at the edges count, so that pictures of any size pass every block
            [nn.Conv2d(a, b, 3, padding=1), nn.GroupNorm(1, b), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True)]
            for a, b in pairwise([section.channels, *section.widths])
        ]
        self.features = nn.Sequential(*(layer for block in blocks for layer in block))
        self.places = nn.AdaptiveAvgPool2d(GRID)
        self.classifier = nn.Linear(GRID * GRID * section.widths[-1], section.outputs)

    def forward(self, pictures: Tensor) -> Tensor:
        """`[N, outputs]` of pictures `[N, channels, height, width]`, each picture standardised."""
        if pictures.dim() != 4 or pictures.shape[1] != self.channels:
            raise DataError(
                f"Samples of shape {shape_of(pictures)} are no pictures for this cnn, which takes ({self.channels}, height, width); "
                f"correct channels under [model], or choose an mlp."
            )
        outputs: Tensor = self.classifier(self.places(self.features(standardised(pictures))).flatten(1))
        return outputs


class Transformer(nn.Module):
    """A transformer encoder without dropout, layer normalisation before each part (Xiong et al. 2020, arXiv 2002.04745), with learned
    positions; then the mean over places and a linear layer. Padding is a token like any other.
    """

    def __init__(self, section: TransformerModel) -> None:
        super().__init__()
        self.section = section
        tokens = section.vocabulary is not None
        self.entry = (
            nn.Embedding(section.vocabulary or 0, section.width) if tokens else nn.Linear(section.features or 0, section.width)
        )
        self.positions = nn.Embedding(section.length, section.width)
        # one by one, where nn.TransformerEncoder would begin every layer with the same weights
        self.encoder = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(
                    section.width, section.heads, 4 * section.width, dropout=0.0, batch_first=True, norm_first=True
                )
                for _ in range(section.layers)
            )
        )
        self.norm = nn.LayerNorm(section.width)
        self.classifier = nn.Linear(section.width, section.outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        """`[N, outputs]` of tokens `[N, places]` (whole numbers, in any dtype) or vectors `[N, places, features]`."""
        entered = self.entry(self.checked(inputs))
        # looked up for every sample, although all have the same: so each gradient is the sample's own without a second pass
        places = torch.arange(inputs.shape[1], device=inputs.device).expand(len(inputs), -1)
        encoded = self.norm(self.encoder(entered + self.positions(places)))
        outputs: Tensor = self.classifier(encoded.mean(dim=1))
        return outputs

    def checked(self, inputs: Tensor) -> Tensor:
        """The inputs as the first layer takes them.

        Raises:
            DataError: another shape, more places than there are positions, or a token that is not in the vocabulary.
        """
        section = self.section
        wanted = f"({section.length} places" + (")" if section.features is None else f", {section.features} features)")
        fits = inputs.dim() == 2 if section.features is None else inputs.dim() == 3 and inputs.shape[2] == section.features
        if not fits or not 1 <= inputs.shape[1] <= section.length:
            raise DataError(
                f"Samples of shape {shape_of(inputs)} do not fit this transformer, which takes at most {wanted}; correct length, "
                f"vocabulary or features under [model]."
            )
        if section.vocabulary is None:
            return inputs
        tokens = inputs.long()
        strange = (tokens != inputs) | (tokens < 0) | (tokens >= section.vocabulary)
        if bool(strange.any()):
            raise DataError(
                f"{float(inputs[strange][0]):g} is no token: this transformer takes whole numbers from 0 to {section.vocabulary - 1}; "
                f"correct vocabulary under [model], or give features for vectors of numbers."
            )
        return tokens


def standardised(inputs: Tensor) -> Tensor:
    """Each sample by its own mean and standard deviation, so that no output depends on the other samples of its batch."""
    deviation, mean = torch.std_mean(inputs, dim=(1, 2, 3), keepdim=True)
    return (inputs - mean) / (deviation + SILENCE)


def shape_of(inputs: Tensor) -> tuple[int, ...]:
    return tuple(inputs.shape[1:])


BUILDERS: dict[type[Any], Callable[[Any], nn.Module]] = {
    RankerModel: lambda section: Ranker(section.layout),
    MlpModel: Mlp,
    CnnModel: Cnn,
    TransformerModel: Transformer,
}


def build_model(section: ModelSection, plugins: Path | None = None) -> nn.Module:
    """The recipe's network in eval mode, with fresh weights from torch's random generator.

    Args:
        plugins: the workspace's folder of plugins; only a plugin's model needs it.

    Raises:
        PluginError: the plugin is missing or does not do what it should.
        RecipeError: a plugin is named where there is no folder of plugins.
    """
    if isinstance(section, PluginModel):
        if plugins is None:
            raise RecipeError(
                f"The model '{section.name}' is a plugin, and there is no folder of plugins here; open it in a workspace that has one."
            )
        return plugin_model(plugins, section)
    return BUILDERS[type(section)](section).eval()
