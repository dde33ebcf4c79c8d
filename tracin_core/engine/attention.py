"""Self-attention in pieces whose inputs and output gradients can be seen."""

import inspect
from collections.abc import Callable
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Note = Callable[[str, Tensor, Tensor], None]

SIGNATURE: Final = inspect.signature(F.multi_head_attention_forward)
# Rare parts of attention, left to torch's own function and so to autograd.
UNUSUAL: Final = ("bias_k", "bias_v", "static_k", "static_v", "add_zero_attn", "use_separate_proj_weight")


class SeenAttention(TorchFunctionMode):
    """While it is active, self-attention is computed as two linear layers around a softmax, and both are noted.

    `nn.MultiheadAttention` calls no module for its projections, so no hook sees them. Here the function behind it is replaced by
    `self_attention`, for layers of this model and for calls with query, key and value the same; others are left alone.

    Attributes:
        note: takes (path of the layer, inputs, outputs), samples first.
    """

    def __init__(self, model: nn.Module, note: Note) -> None:
        super().__init__()
        layers = ((path, layer) for path, layer in model.named_modules() if isinstance(layer, nn.MultiheadAttention))
        self.paths = {id(layer.in_proj_weight): path for path, layer in layers if layer.in_proj_weight is not None}
        self.note = note

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.multi_head_attention_forward:
            return func(*args, **kwargs)
        call = SIGNATURE.bind(*args, **kwargs)
        call.apply_defaults()
        given = call.arguments
        path = self.paths.get(id(given["in_proj_weight"]))
        alone = given["query"] is given["key"] is given["value"] and given["query"].dim() == 3
        unusual = any(given[name] is not None and given[name] is not False for name in UNUSUAL)
        # `nn.MultiheadAttention` has made numbers of its masks already.
        boolean = any(given[name] is not None and given[name].dtype == torch.bool for name in ("attn_mask", "key_padding_mask"))
        if path is None or not alone or unusual or boolean:
            return func(*args, **kwargs)
        return self_attention(given, path, self.note)


def self_attention(given: dict[str, Any], path: str, note: Note) -> tuple[Tensor, Tensor | None]:
    """What `F.multi_head_attention_forward` gives for self-attention of `[positions, samples, width]` in eval mode.

    softmax(q k^T / sqrt(d) + mask) v per head, between the projections `in_proj` and `out_proj` (Vaswani et al. 2017).
    """
    inputs = given["query"].transpose(0, 1)
    n, positions, width = inputs.shape
    projected = F.linear(inputs, given["in_proj_weight"], given["in_proj_bias"])
    q, k, v = projected.view(n, positions, 3, given["num_heads"], -1).permute(2, 0, 3, 1, 4)
    mask = attention_mask(given, n, q)
    weights = None
    if given["need_weights"]:
        scores = (q / q.shape[-1] ** 0.5) @ k.transpose(-2, -1)
        weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
        mixed = weights @ v
        weights = weights.mean(1) if given["average_attn_weights"] else weights
    else:
        causal = mask is None and given["is_causal"]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    mixed = mixed.transpose(1, 2).reshape(n, positions, width)
    outputs = F.linear(mixed, given["out_proj_weight"], given["out_proj_bias"])
    note(path, inputs, projected)
    note(f"{path}.out_proj" if path else "out_proj", mixed, outputs)
    return outputs.transpose(0, 1), weights


def attention_mask(given: dict[str, Any], samples: int, like: Tensor) -> Tensor | None:
    """`[samples or 1, heads or 1, positions or 1, positions]`, to be added; None for no mask, or a causal one that is only hinted at."""
    mask, padding = given["attn_mask"], given["key_padding_mask"]
    if given["is_causal"] and padding is None and not given["need_weights"]:
        return None
    total = None
    if mask is not None:
        mask = mask.to(like)
        total = mask if mask.dim() == 2 else mask.view(samples, -1, *mask.shape[1:])
    if padding is not None:
        padding = padding.to(like)[:, None, None, :]
        total = padding if total is None else total + padding
    return total
