"""Cross-entropy self-influence of 10,000 samples, MLP 784-512-512-10. One line of JSON.

    python benchmarks/self_influence_mlp.py [--repeats 3]

Ours is measured whole. The peers form every sample's gradient, batch by batch, so their time is strictly linear; they are measured on 2,000
samples and scaled by 5. *Per-sample gradients* is what opacus does: hooks keep each layer's input and output gradient, and an einsum
makes the gradients of the samples, whose squares are summed.
"""

import argparse

import mlp
import torch
import torch.nn.functional as F
from common import difference, medians, report, take_turns
from torch import Tensor, nn

from tracin_core.engine.classification import logit_cotangent
from tracin_core.engine.kernel import model_outputs, tangent_norms

SAMPLES, SOME = 10_000, 2_000


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    model, (inputs, labels) = mlp.build(), mlp.draw(SAMPLES, 1)
    some = inputs[:SOME], labels[:SOME]

    def ours() -> Tensor:
        outputs = model_outputs(model, inputs, 500)
        norms = tangent_norms(model, inputs, cotangent=logit_cotangent(outputs, labels), batch_size=500)
        return mlp.wrongness(outputs, labels) ** 2 * norms

    tracin = mlp.captum_of(model, some)
    work = {"ours": ours, "captum": tracin.self_influence, "per-sample gradients": lambda: by_hooks(model, *some)}
    expected = ours()[:SOME]
    differences = {name: difference(work[name](), expected) for name in work if name != "ours"}
    seconds = take_turns(work, options.repeats)
    middle = medians(seconds)
    whole = {name: middle[name] * SAMPLES / SOME for name in differences}
    best = min(whole, key=lambda name: whole[name])
    report(
        "self_influence_mlp",
        ["captum"],
        data=f"SIMULATED {SAMPLES} images of 28 x 28, MLP 784-512-512-10, cross-entropy",
        ours_seconds=middle["ours"],
        peers_seconds=whole,
        peers_scaled=f"from {SOME} samples, by {SAMPLES // SOME}",
        best_peer=best,
        ratio=whole[best] / middle["ours"],
        target="at least 5",
        largest_difference=differences,
        turns=seconds,
    )


def by_hooks(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """Squared norms of gradients that are formed sample by sample, as opacus forms them."""
    kept: dict[nn.Module, Tensor] = {}
    norms = []

    def keep(layer: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        kept[layer] = given[0]

    def form(layer: nn.Module, _: object, gradients: tuple[Tensor, ...]) -> None:
        weight = torch.einsum("np,nd->npd", gradients[0], kept[layer])
        norms[-1] += weight.flatten(1).square().sum(1) + gradients[0].square().sum(1)

    layers = [layer for layer in model if isinstance(layer, nn.Linear)]
    hooks = [hook for layer in layers for hook in (layer.register_forward_hook(keep), layer.register_full_backward_hook(form))]
    for batch, chosen in zip(inputs.split(mlp.BATCH), labels.split(mlp.BATCH), strict=True):
        norms.append(torch.zeros(len(batch)))
        F.cross_entropy(model(batch), chosen, reduction="sum").backward()
    for hook in hooks:
        hook.remove()
    model.zero_grad()
    return torch.cat(norms)


if __name__ == "__main__":
    main()
