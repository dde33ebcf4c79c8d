"""Models that an exact engine must not get wrong, and the slow, obvious way to their kernel: one backward pass per sample."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tracin_core.engine.models import Ranker

# Sums of up to some 1e5 terms, taken in another order than plain autograd's.
FLOAT64 = {"rtol": 1e-9, "atol": 1e-12}
# The same in single precision, relative to the largest entry: rounding of 6e-8 through a few layers.
FLOAT32 = {"rtol": 0.0, "atol": 1e-5}

torch.set_num_threads(1)  # these models are far too small to share out, and waiting costs more than working

# What differentiates a recurrent layer: `torch.func` cannot go through the CPU's own kernels for it.
RECURRENT = "one at a time" if torch.get_default_device().type == "cpu" else "torch.func"

Samples = Tensor | tuple[Tensor, ...] | dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """A model with samples.

    Attributes:
        build: the model.
        draw: n samples for it.
        outputs: numbers per sample; more than one needs a cotangent.
        paths: parameter -> path, where it matters which one serves it.
    """

    build: Callable[[], nn.Module]
    draw: Callable[[int], Samples]
    outputs: tuple[int, ...] = (1,)
    paths: dict[str, str] = field(default_factory=dict)


def model_of(case: Case, seed: int = 0) -> nn.Module:
    """The model in float64, in eval mode, with every weight and running statistic away from its special initial value."""
    torch.manual_seed(seed)
    model = case.build().double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_()
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2.0)
    return model


def samples_of(case: Case, count: int, seed: int = 1) -> Samples:
    torch.manual_seed(seed)
    return case.draw(count)


def cotangent_of(case: Case, count: int, seed: int = 2) -> Tensor | None:
    torch.manual_seed(seed)
    return None if case.outputs == (1,) else torch.randn(count, *case.outputs, dtype=torch.float64)


def part(samples: Samples, rows: slice) -> Samples:
    if isinstance(samples, dict):
        return {key: value[rows] for key, value in samples.items()}
    return samples[rows] if isinstance(samples, Tensor) else tuple(value[rows] for value in samples)


def answer(model: nn.Module, samples: Samples) -> Tensor:
    if isinstance(samples, dict):
        return model(**samples)
    return model(samples) if isinstance(samples, Tensor) else model(*samples)


def autograd_rows(model: nn.Module, samples: Samples, count: int, cotangent: Tensor | None = None) -> dict[str, Tensor]:
    """`[n, entries]` gradients of every trainable parameter, by one backward pass per sample."""
    chosen = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    rows: dict[str, list[Tensor]] = {name: [] for name in chosen}
    for index in range(count):
        alone = part(samples, slice(index, index + 1))
        alone = {k: v.clone() for k, v in alone.items()} if isinstance(alone, dict) else alone
        with torch.backends.cudnn.flags(enabled=False):  # which refuses the backward pass of a recurrent layer in eval mode
            output = answer(model, alone.clone() if isinstance(alone, Tensor) else alone)
            direction = torch.ones_like(output) if cotangent is None else cotangent[index : index + 1].reshape(output.shape)
            gradients = torch.autograd.grad(output, list(chosen.values()), direction, allow_unused=True, materialize_grads=True)
        for name, gradient in zip(chosen, gradients, strict=True):
            rows[name].append(gradient.flatten())
    return {name: torch.stack(values) for name, values in rows.items()}


def joined(rows: dict[str, Tensor]) -> Tensor:
    return torch.cat(list(rows.values()), 1)


def image(channels: int = 2, *size: int) -> Callable[[int], Tensor]:
    return lambda n: torch.randn(n, channels, *size, dtype=torch.float64)


class Head(nn.Module):
    """Layers, then a fixed weighted sum of everything, so that no gradient is constant."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(x).flatten(1)
        weights = torch.cos(torch.arange(y.shape[1], dtype=y.dtype, device=y.device))
        return (torch.tanh(y) * weights).sum(1, keepdim=True)


class Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4), nn.Tanh(), nn.Linear(4, 1))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return self.body(first) - 2 * self.body(second) * self.body(first)


class StackedSiamese(Siamese):
    """Both inputs in one call: the first axis of the layers is twice the batch."""

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        a, b = self.body(torch.cat([first, second])).chunk(2)
        return a - 2 * b


class Tied(nn.Module):
    """A language model's trick: the output layer uses the embedding's table."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 5)
        self.hidden = nn.Linear(5, 5)
        self.decoder = nn.Linear(5, 11, bias=False)
        self.decoder.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.decoder(torch.tanh(self.hidden(self.embedding(tokens).mean(1))))


class TiedLayers(nn.Module):
    """One module under two names, and one parameter in two modules."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.again = self.first
        self.other = nn.Linear(4, 4)
        self.mirror = nn.Linear(4, 4)
        self.mirror.weight = self.other.weight

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.again(torch.tanh(self.first(x))))
        return self.mirror(torch.tanh(self.other(y))).sum(1)


class Bare(nn.Module):
    """Parameters outside any layer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.factor = nn.Parameter(torch.ones(()))
        self.layer = nn.Linear(3, 3)
        self.shift = nn.ParameterList([nn.Parameter(torch.zeros(3))])

    def forward(self, x: Tensor) -> Tensor:
        return (torch.sin(self.layer(x) * self.scale * self.factor) + self.shift[0] ** 2).sum(1)


class Borrowing(nn.Module):
    """A layer's weight that is also used behind the layer's back."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.tanh(self.layer(x)), self.layer.weight).sum(1)


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase] = nn.LSTM) -> None:
        super().__init__()
        self.recurrent = kind(3, 4, batch_first=True)
        self.head = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.recurrent(x)[0][:, -1])


class TimeFirst(nn.Module):
    """Layers that see time on the first axis, as many steps as there are samples in a batch of 7."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.norm = nn.LayerNorm(3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(torch.tanh(self.layer(x.transpose(0, 1))))
        return (y.cumsum(0) ** 2).sum((0, 2))


class Positional(nn.Module):
    """A learned position table, looked up once for all samples."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(9, 4, padding_idx=0)
        self.positions = nn.Embedding(7, 4)
        self.encoder = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1]))
        return torch.sin(self.encoder(x)).sum((1, 2))


class Attending(nn.Module):
    """Attention by itself, with whatever arguments; its weights count if they are asked for."""

    def __init__(
        self, ask: Callable[[Tensor], dict[str, object]] = lambda x: {}, *, other: bool = False, **options: object
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 4)
        self.attention = nn.MultiheadAttention(4, 2, **{"batch_first": True, **options})
        self.ask, self.other = ask, other

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.embed(x))
        y = y if self.attention.batch_first else y.transpose(0, 1)
        mixed, weights = self.attention(y, y * 2 if self.other else y, y, **self.ask(x))
        mixed = mixed if self.attention.batch_first else mixed.transpose(0, 1)
        total = torch.sin(mixed * torch.arange(1, 5)).sum((1, 2))
        return total if weights is None else total + (weights**2).flatten(1).cumsum(1).sum(1)


class CheckpointedAttention(Attending):
    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(super().forward, x, use_reentrant=False)


class Translating(nn.Module):
    """Encoder and decoder, with padding; the decoder attends to itself and to the encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(9, 4)
        layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.decoder = nn.TransformerDecoderLayer(4, 2, 8, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens)
        memory = self.encoder(x, src_key_padding_mask=tokens > 6)
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1], dtype=x.dtype)
        return torch.sin(self.decoder(x[:, :4], memory, tgt_mask=mask[:4, :4], tgt_is_causal=True)).sum((1, 2))


class Bag(nn.Module):
    """An embedding bag with a second argument, which its rule does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.EmbeddingBag(9, 3, mode="sum")

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.sin(self.table(tokens, per_sample_weights=tokens.to(self.table.weight) + 1)).sum(1)


class Overwriting(nn.Module):
    """In-place operations on layer outputs and on the input itself."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(2, 3, 3),
            nn.BatchNorm2d(3),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            nn.Linear(27, 2),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(0.5)
        return self.body(x).sum(1)


class Hooked(nn.Module):
    """The model's own hooks change what the layer gives."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.layer.register_forward_hook(lambda layer, inputs, output: torch.exp(output))
        self.layer.register_forward_pre_hook(lambda layer, inputs: (inputs[0] * 3,))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).prod(1)


class Patched(nn.Module):
    """A Linear that does not do what its type says."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.layer.forward = lambda x: F.linear(x, self.layer.weight**2, self.layer.bias)  # type: ignore[method-assign]

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.layer(x)).sum(1)


class Checkpointed(nn.Module):
    """Activations thrown away and computed again during the backward pass."""

    def __init__(self, reentrant: bool = False) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.second = nn.Linear(4, 4)
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.first(x))
        return torch.tanh(checkpoint(self.second, y, use_reentrant=self.reentrant)).sum(1)


class PartlyUsed(nn.Module):
    """Parameters that do not count: one layer never called, one called for nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Linear(3, 3)
        self.unused = nn.Linear(3, 3)
        self.ignored = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.ignored(x)
        return torch.tanh(self.used(x)).sum(1)


def weight_normed() -> nn.Module:
    return Head(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 2))


def frozen_part() -> nn.Module:
    model = Head(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    model.layers[2].weight.requires_grad_(False)
    model.layers[0].requires_grad_(False)
    return model


def tokens(n: int) -> Tensor:
    return torch.randint(0, 9, (n, 6))


# One layer (or two) each, with the shape of its input; the rule of every layer type must serve these.
LAYERS: dict[str, Case] = {
    "linear": Case(lambda: Head(nn.Linear(4, 3)), image(4)),
    "linear without bias": Case(lambda: Head(nn.Linear(4, 3, bias=False)), image(4)),
    "linear at positions": Case(lambda: Head(nn.Linear(4, 3)), image(5, 4)),
    "linear at many positions": Case(lambda: Head(nn.Linear(3, 2)), image(2, 5, 4, 3)),
    "conv1d": Case(lambda: Head(nn.Conv1d(4, 6, 3, stride=2, dilation=2, padding=3, groups=2)), image(4, 15)),
    "conv2d": Case(lambda: Head(nn.Conv2d(2, 3, 3)), image(2, 6, 5)),
    "conv2d oblong": Case(lambda: Head(nn.Conv2d(2, 4, (5, 3), stride=(2, 4), padding=(2, 1), dilation=(1, 2))), image(2, 9, 13)),
    "conv2d depthwise": Case(lambda: Head(nn.Conv2d(4, 8, 3, groups=4, padding=1, bias=False)), image(4, 5, 5)),
    "conv2d same": Case(lambda: Head(nn.Conv2d(2, 3, (4, 2), padding="same", dilation=(1, 3))), image(2, 6, 7)),
    "conv2d valid": Case(lambda: Head(nn.Conv2d(2, 3, 2, padding="valid")), image(2, 4, 4)),
    "conv2d reflect": Case(lambda: Head(nn.Conv2d(2, 3, 3, padding=2, padding_mode="reflect")), image(2, 5, 6)),
    "conv2d circular": Case(lambda: Head(nn.Conv2d(2, 3, 3, padding="same", padding_mode="circular")), image(2, 5, 6)),
    "conv2d replicate": Case(lambda: Head(nn.Conv2d(2, 3, 3, padding=1, padding_mode="replicate")), image(2, 5, 6)),
    "conv2d pixel": Case(lambda: Head(nn.Conv2d(2, 3, 3)), image(2, 3, 3)),
    "conv1d same": Case(lambda: Head(nn.Conv1d(2, 3, 4, padding="same", dilation=2)), image(2, 9)),
    "conv3d circular": Case(lambda: Head(nn.Conv3d(1, 2, 2, padding=1, padding_mode="circular")), image(1, 2, 3, 2)),
    "conv3d": Case(lambda: Head(nn.Conv3d(2, 4, (1, 2, 3), stride=(1, 2, 1), groups=2, padding=1)), image(2, 3, 4, 4)),
    "batch norm of vectors": Case(lambda: Head(nn.BatchNorm1d(4)), image(4)),
    "batch norm of sequences": Case(lambda: Head(nn.BatchNorm1d(4)), image(4, 5)),
    "batch norm of images": Case(lambda: Head(nn.BatchNorm2d(2)), image(2, 4, 3)),
    "batch norm of volumes": Case(lambda: Head(nn.BatchNorm3d(2)), image(2, 2, 3, 2)),
    "layer norm": Case(lambda: Head(nn.LayerNorm(4)), image(3, 4)),
    "layer norm of images": Case(lambda: Head(nn.LayerNorm([2, 4, 3])), image(2, 4, 3)),
    "layer norm without bias": Case(lambda: Head(nn.LayerNorm(4, bias=False)), image(3, 4)),
    "group norm": Case(lambda: Head(nn.GroupNorm(2, 6)), image(6, 3, 2)),
    "instance norm": Case(lambda: Head(nn.InstanceNorm2d(3, affine=True)), image(3, 4, 3)),
    "instance norm, running": Case(lambda: Head(nn.InstanceNorm1d(3, affine=True, track_running_stats=True)), image(3, 6)),
    "instance norm of volumes": Case(lambda: Head(nn.InstanceNorm3d(2, affine=True)), image(2, 2, 3, 2)),
    "rms norm": Case(lambda: Head(nn.RMSNorm(4)), image(3, 4)),
    "rms norm with eps": Case(lambda: Head(nn.RMSNorm([3, 4], eps=1e-2)), image(2, 3, 4)),
    "embedding": Case(lambda: Head(nn.Embedding(9, 3)), tokens),
    "embedding with padding": Case(lambda: Head(nn.Embedding(9, 3, padding_idx=2)), tokens),
    "embedding bag": Case(lambda: Head(nn.EmbeddingBag(9, 3, mode="sum")), tokens),
    "embedding bag, mean with padding": Case(lambda: Head(nn.EmbeddingBag(9, 3, mode="mean", padding_idx=2)), tokens),
}

MODELS: dict[str, Case] = {
    "ranker small": Case(Ranker, image(1, 24, 40)),
    "ranker large": Case(lambda: Ranker("large"), image(1, 129, 258)),
    "ranker large, resized": Case(lambda: Ranker("large_resized"), image(1, 33, 70)),
    "conv net": Case(
        lambda: Head(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3)),
        image(2, 6, 6),
    ),
    "classifier": Case(lambda: nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 3)), image(4), (3,)),
    "map": Case(lambda: nn.Conv2d(2, 3, 2), image(2, 4, 4), (3, 3, 3)),
    "siamese": Case(
        Siamese,
        lambda n: {"second": image(1, 6, 6)(n), "first": image(1, 6, 6)(n)},
        paths={"body.0.weight": "rule: Conv2d"},
    ),
    "siamese by position": Case(Siamese, lambda n: (image(1, 6, 6)(n), image(1, 6, 6)(n))),
    "siamese in one call": Case(
        StackedSiamese,
        lambda n: (image(1, 6, 6)(n), image(1, 6, 6)(n)),
        paths={"body.0.weight": "torch.func", "body.5.bias": "torch.func"},
    ),
    "tied embedding": Case(Tied, tokens, (11,), paths={"embedding.weight": "torch.func", "hidden.weight": "rule: Linear"}),
    "tied layers": Case(
        TiedLayers,
        image(4),
        paths={"first.weight": "rule: Linear", "other.weight": "torch.func", "mirror.bias": "rule: Linear"},
    ),
    "bare parameters": Case(Bare, image(3), paths={"scale": "torch.func", "shift.0": "torch.func", "layer.weight": "rule: Linear"}),
    "borrowed weight": Case(Borrowing, image(4), paths={"layer.weight": "torch.func", "layer.bias": "rule: Linear"}),
    "lstm": Case(
        Recurrent,
        image(5, 3),
        paths={"recurrent.weight_ih_l0": RECURRENT, "head.weight": "rule: Linear"},
    ),
    "gru": Case(lambda: Recurrent(nn.GRU), image(5, 3)),
    "time first": Case(TimeFirst, image(7, 3), paths={"layer.weight": "torch.func"}),
    "positions": Case(
        Positional,
        tokens,
        paths={
            "positions.weight": "torch.func",
            "tokens.weight": "rule: Embedding",
            "encoder.self_attn.in_proj_weight": "rule: MultiheadAttention",
            "encoder.self_attn.in_proj_bias": "rule: MultiheadAttention",
            "encoder.self_attn.out_proj.weight": "rule: NonDynamicallyQuantizableLinear",
            "encoder.linear1.weight": "rule: Linear",
        },
    ),
    "attention": Case(
        lambda: Attending(lambda x: {"need_weights": False}),
        image(5, 3),
        paths={"attention.in_proj_weight": "rule: MultiheadAttention"},
    ),
    "attention with weights": Case(Attending, image(5, 3), paths={"attention.in_proj_weight": "rule: MultiheadAttention"}),
    "attention, time first": Case(
        lambda: Attending(lambda x: {"average_attn_weights": False}, batch_first=False, bias=False),
        image(5, 3),
        paths={"attention.in_proj_weight": "rule: MultiheadAttention"},
    ),
    "attention with masks": Case(
        lambda: Attending(lambda x: {"attn_mask": torch.eye(5) > 0, "key_padding_mask": x[:, :, 0] > 1.5}), image(5, 3)
    ),
    "attention with a mask per head": Case(
        lambda: Attending(lambda x: {"attn_mask": x[:, :, 1].repeat_interleave(2, 0)[:, None].expand(-1, 5, -1)}), image(5, 3)
    ),
    "attention, causal": Case(
        lambda: Attending(
            lambda x: {
                "need_weights": False,
                "is_causal": True,
                "attn_mask": nn.Transformer.generate_square_subsequent_mask(5, dtype=x.dtype),
            }
        ),
        image(5, 3),
    ),
    "attention to something else": Case(
        lambda: Attending(other=True),
        image(5, 3),
        paths={"attention.in_proj_weight": "torch.func", "attention.out_proj.weight": "torch.func", "embed.weight": "rule: Linear"},
    ),
    "attention with extra keys": Case(
        lambda: Attending(add_bias_kv=True, add_zero_attn=True), image(5, 3), paths={"attention.bias_k": "torch.func"}
    ),
    "transformer": Case(
        Translating,
        tokens,
        paths={
            "encoder.layers.1.self_attn.in_proj_weight": "rule: MultiheadAttention",
            "decoder.self_attn.in_proj_weight": "rule: MultiheadAttention",
            "decoder.multihead_attn.in_proj_weight": "torch.func",
        },
    ),
    "checkpointed attention": Case(CheckpointedAttention, image(5, 3), paths={"attention.in_proj_weight": "one at a time"}),
    "overwriting": Case(Overwriting, image(2, 5, 5), paths={"body.1.weight": "rule: BatchNorm2d"}),
    "own hooks": Case(Hooked, image(3), paths={"layer.weight": "rule: Linear"}),
    "patched forward": Case(Patched, image(3), paths={"layer.weight": "torch.func"}),
    "activation checkpoints": Case(Checkpointed, image(3), paths={"second.weight": "rule: Linear"}),
    "partly used": Case(PartlyUsed, image(3)),
    "weight norm": Case(weight_normed, image(3)),
    "frozen part": Case(frozen_part, image(3), paths={"layers.0.weight": "frozen", "layers.2.weight": "frozen"}),
    "embedding bag, max": Case(lambda: Head(nn.EmbeddingBag(9, 3, mode="max")), tokens, paths={"layers.0.weight": "torch.func"}),
    "embedding bag with weights": Case(Bag, tokens),
    "embedding bag with max norm": Case(lambda: Head(nn.EmbeddingBag(9, 3, mode="sum", max_norm=0.7)), tokens),
    "embedding with max norm": Case(lambda: Head(nn.Embedding(9, 3, max_norm=0.7)), tokens),
    "transposed convolution": Case(
        lambda: Head(nn.ConvTranspose2d(2, 3, 3, stride=2)), image(2, 3, 3), paths={"layers.0.weight": "torch.func"}
    ),
    "transposed convolution of sequences": Case(
        lambda: Head(nn.ConvTranspose1d(4, 6, 3, padding=1, groups=2, dilation=2)), image(4, 5)
    ),
    "transposed convolution of volumes": Case(
        lambda: Head(nn.ConvTranspose3d(1, 2, 2, stride=2, output_padding=1)), image(1, 2, 2, 2)
    ),
}

CASES = {**LAYERS, **MODELS}
