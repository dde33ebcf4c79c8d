"""The rankers have the published layout, and every built-in model gives each sample outputs of its own, with exact kernels."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from engine_cases import FLOAT64, autograd_rows, joined
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tracin_core.engine.health import check_model
from tracin_core.engine.kernel import coverage, tangent_kernel
from tracin_core.engine.models import Mlp, Ranker, build_model
from tracin_core.errors import DataError
from tracin_core.recipe import CnnModel, MlpModel, ModelSection, RankerModel, TransformerModel

LAYOUTS = {
    "small": (
        5_733,
        [0, 1, 4, 5],
        {"features.0": (32, 1, 5, 5), "features.4": (16, 32, 3, 3), "classifier.0": (10, 16)},
    ),
    "large": (
        422_337,
        [0, 1, 4, 5, 8, 9, 12, 13],
        {"features.4": (64, 32, 3, 3), "features.12": (256, 128, 3, 3), "classifier.0": (128, 256)},
    ),
}
LAYOUTS["large_dropout"] = LAYOUTS["large_resized"] = LAYOUTS["large"]
STRIDES = {
    "small": [(2, 4), (2, 2)],
    "large": [(2, 4), (2, 2), (2, 2), (1, 1)],
    "large_dropout": [(2, 4), (2, 2), (2, 2), (1, 1)],
    "large_resized": [(2, 2), (1, 1), (1, 1), (1, 1)],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_layout_is_the_published_one(layout: str) -> None:
    """Checkpoints written elsewhere load by these names and shapes."""
    count, numbers, shapes = LAYOUTS[layout]
    model = build_model(RankerModel(layout=layout))
    assert not model.training
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    modules = {name.rpartition(".")[0] for name in model.state_dict()}
    last = "classifier.3" if layout in ("large_dropout", "large_resized") else "classifier.2"
    assert modules == {f"features.{number}" for number in numbers} | {"classifier.0", last}
    assert [layer.stride for layer in model.modules() if isinstance(layer, nn.Conv2d)] == STRIDES[layout]
    for name, shape in shapes.items():
        assert tuple(model.state_dict()[f"{name}.weight"].shape) == shape
    assert model.state_dict()[f"{last}.weight"].shape[0] == 1


def test_a_resized_ranker_sees_128_x_128() -> None:
    """Resizing and then standardising by hand gives the same score."""
    torch.manual_seed(0)
    model = build_model(RankerModel(layout="large_resized")).double()
    spectra = torch.randn(2, 1, 60, 200, dtype=torch.float64)
    sized = nn.functional.interpolate(spectra, size=(128, 128), mode="bilinear")
    torch.testing.assert_close(model(spectra), model(sized), **FLOAT64)
    assert not torch.allclose(model(spectra), model(spectra[..., :100]))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_score_does_not_depend_on_the_batch(layout: str) -> None:
    """Samples of very different loudness: a mean over the batch would show at once."""
    torch.manual_seed(0)
    model = Ranker(layout).double().eval()
    spectra = torch.randn(4, 1, 129, 258, dtype=torch.float64) * torch.tensor([1.0, 10, 100, 0.1]).view(4, 1, 1, 1) - 40
    together = model(spectra)
    assert together.shape == (4, 1)
    torch.testing.assert_close(torch.cat([model(one[None]) for one in spectra]), together, **FLOAT64)


def test_a_score_does_not_depend_on_loudness() -> None:
    """Standardisation takes out gain and offset, as the batch-wide rule did for a batch of one."""
    torch.manual_seed(0)
    model = Ranker().double().eval()
    spectra = torch.randn(3, 1, 65, 94, dtype=torch.float64)
    torch.testing.assert_close(model(3 * spectra - 7), model(spectra), rtol=1e-6, atol=1e-6)
    ready = torch.stack([(one - one.mean()) / (one.std() + 1e-8) for one in spectra])
    expected = model.classifier(model.features(ready).mean((2, 3)))
    torch.testing.assert_close(model(spectra), expected, **FLOAT64)


def test_a_constant_recording_has_a_finite_score() -> None:
    assert torch.isfinite(Ranker().eval()(torch.full((1, 1, 32, 32), -80.0))).all()


# ---- mlp, cnn, transformer -----------------------------------------------------------------------------------------------------

Draw = Callable[[int], Tensor]


def numbers(*shape: int) -> Draw:
    return lambda count: torch.randn(count, *shape, dtype=torch.float64)


def tokens(*shape: int) -> Draw:
    return lambda count: torch.randint(0, 5, (count, *shape))


# What each kind is given, and its settings beside the number of outputs.
KINDS: dict[str, tuple[type[Any], dict[str, Any], Draw]] = {
    "mlp": (MlpModel, {"inputs": 6, "hidden": (4, 3)}, numbers(6)),
    "mlp of pictures": (MlpModel, {"inputs": 6, "hidden": (4,)}, numbers(1, 2, 3)),
    "linear": (MlpModel, {"inputs": 6, "hidden": ()}, numbers(6)),
    "cnn": (CnnModel, {"widths": (4, 6)}, numbers(1, 9, 7)),
    "cnn of colours": (CnnModel, {"channels": 3, "widths": (4,)}, numbers(3, 5, 8)),
    "cnn of points": (CnnModel, {"channels": 2, "widths": (3, 3, 3)}, numbers(2, 1, 1)),
    "transformer of tokens": (TransformerModel, {"vocabulary": 5, "length": 7, "width": 4, "heads": 2}, tokens(6)),
    "transformer of vectors": (TransformerModel, {"features": 3, "length": 4, "width": 4, "heads": 1, "layers": 1}, numbers(4, 3)),
}


def built(kind: str, outputs: int) -> tuple[nn.Module, Tensor]:
    """The model in float64, away from its special first weights, and five samples."""
    form, given_, draw = KINDS[kind]
    torch.manual_seed(3)
    model = build_model(form(**given_, outputs=outputs)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model, draw(5)


@pytest.mark.parametrize("outputs", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_the_kernel_is_that_of_plain_autograd(kind: str, outputs: int) -> None:
    """One backward pass per sample, in float64, for any mixture of the outputs."""
    model, inputs = built(kind, outputs)
    cotangent = torch.randn(5, outputs, dtype=torch.float64)
    gradients = joined(autograd_rows(model, inputs, 5, cotangent))
    assert gradients.shape[1] == sum(parameter.numel() for parameter in model.parameters())
    kernel = tangent_kernel(model, inputs, left_cotangent=cotangent, batch_size=3)
    torch.testing.assert_close(kernel, gradients @ gradients.T, **FLOAT64)


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_has_a_rule_and_no_check_fails(kind: str, outputs: int) -> None:
    """The fast path serves each parameter, and the health check finds nothing, in single precision as in a run."""
    model, inputs = built(kind, outputs)
    assert [path for _, path in coverage(model, inputs) if not path.startswith("rule")] == []
    single = inputs.float() if inputs.is_floating_point() else inputs
    assert [check for check in check_model(model.float(), single) if not check.passed] == []


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_an_output_depends_on_its_sample_alone(kind: str, training: bool) -> None:
    """In training mode too: nothing is drawn, and no statistic is of the batch, so a step's gradient is a mean of the samples' own."""
    model, inputs = built(kind, 2)
    together = model.train(training)(inputs)
    assert together.shape == (5, 2)
    torch.testing.assert_close(torch.cat([model(one[None]) for one in inputs]), together, **FLOAT64)
    torch.testing.assert_close(model.eval()(inputs), together, **FLOAT64)


def test_a_cnn_takes_pictures_of_any_size() -> None:
    """Of one set of weights; gain and offset of a picture do not matter, where things are does."""
    model = build_model(CnnModel(widths=(4, 4), outputs=2)).double()
    for height, width in ((1, 2), (2, 3), (28, 28), (65, 94)):
        outputs = model(torch.randn(2, 1, height, width, dtype=torch.float64))
        assert outputs.shape == (2, 2)
        assert outputs.isfinite().all()
    picture = torch.randn(1, 1, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(model(7 * picture - 2), model(picture), rtol=1e-6, atol=1e-6)
    assert not torch.allclose(model(picture.flip(2)), model(picture), rtol=1e-3)


def test_tokens_are_the_same_in_any_type() -> None:
    """Inputs are often stored as floats; a token is a whole number all the same. Their order matters."""
    model, inputs = built("transformer of tokens", 2)
    torch.testing.assert_close(model(inputs.float()), model(inputs), rtol=0, atol=0)
    assert not torch.allclose(model(inputs.flip(1)), model(inputs))
    assert model(inputs[:, :3]).shape == (5, 2)


@given(seed=st.integers(0, 1000), count=st.integers(1, 20))
@settings(deadline=None, max_examples=30)
def test_an_mlp_scales_its_inputs_by_what_it_was_fitted_to(seed: int, count: int) -> None:
    """Units and offsets of columns do not matter then, and a column that never changes stays finite."""
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randn(count, 3, dtype=torch.float64, generator=generator)
    raw[:, 2] = 5.0
    scale = torch.tensor([1e-3, 1e4, 1.0], dtype=torch.float64)
    outputs = []
    for values in (raw, raw * scale + 7):
        torch.manual_seed(0)
        model = build_model(MlpModel(inputs=3, hidden=(4,))).double()
        assert isinstance(model, Mlp)
        model.fit(values)
        outputs.append(model(values))
        if count > 1:
            torch.testing.assert_close(
                model.deviation, values.std(0, correction=0).where(torch.arange(3) < 2, torch.tensor(1.0)), **FLOAT64
            )
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-5, atol=1e-5)
    assert outputs[0].isfinite().all()
    assert not any(name in dict(model.named_parameters()) for name in ("mean", "deviation"))


def test_the_points_of_pictures_share_one_scale_and_nothing_matters_of_it() -> None:
    """A point that is ink in one picture of a thousand is no larger than ink elsewhere; the scale of all of them still cancels."""
    pictures = torch.zeros(1000, 1, 2, 2, dtype=torch.float64)
    pictures[::2, 0, 0, 0] = pictures[0, 0, 1, 1] = 255.0
    outputs = []
    for values in (pictures, pictures / 255):
        torch.manual_seed(0)
        model = build_model(MlpModel(inputs=4, hidden=(3,))).double()
        assert isinstance(model, Mlp)
        model.fit(values)
        outputs.append(model(values))
        torch.testing.assert_close(model.deviation, values.std(correction=0).expand(4), **FLOAT64)
        torch.testing.assert_close(model.mean, values.mean().expand(4), **FLOAT64)
    torch.testing.assert_close(*outputs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("section", "inputs", "told"),
    [
        (MlpModel(inputs=5), torch.ones(2, 2, 3), r"of shape \(2, 3\) have 6 values, but the mlp takes 5; write inputs = 6"),
        (
            CnnModel(),
            torch.ones(2, 3, 8, 8),
            r"of shape \(3, 8, 8\) are no pictures for this cnn, which takes \(1, height, width\)",
        ),
        (CnnModel(), torch.ones(2, 8), "are no pictures"),
        (TransformerModel(vocabulary=4, length=3), torch.ones(2, 5), r"at most \(3 places\)"),
        (
            TransformerModel(vocabulary=4, length=3),
            torch.tensor([[1, 4]]),
            "4 is no token: this transformer takes whole numbers from 0 to 3",
        ),
        (TransformerModel(vocabulary=4, length=3), torch.tensor([[0.5, 1]]), r"0\.5 is no token"),
        (TransformerModel(vocabulary=4, length=3), torch.tensor([[-1, 1]]), "-1 is no token"),
        (TransformerModel(features=4, length=3), torch.ones(2, 3, 5), r"at most \(3 places, 4 features\)"),
        (TransformerModel(features=4, length=3), torch.ones(2, 0, 4), "do not fit this transformer"),
    ],
)
def test_samples_that_do_not_fit_are_refused(section: ModelSection, inputs: Tensor, told: str) -> None:
    with pytest.raises(DataError, match=told):
        build_model(section)(inputs)
