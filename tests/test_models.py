"""The rankers have the published layout, and score each recording by itself."""

import pytest
import torch
from engine_cases import FLOAT64

from tracin_core.engine.models import Ranker, build_model
from tracin_core.recipe import RankerModel

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


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_layout_is_the_published_one(layout: str) -> None:
    """Checkpoints written elsewhere load by these names and shapes."""
    count, numbers, shapes = LAYOUTS[layout]
    model = build_model(RankerModel(layout=layout))
    assert not model.training
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    modules = {name.rpartition(".")[0] for name in model.state_dict()}
    assert modules == {f"features.{number}" for number in numbers} | {"classifier.0", "classifier.2"}
    for name, shape in shapes.items():
        assert tuple(model.state_dict()[f"{name}.weight"].shape) == shape
    assert model.state_dict()["classifier.2.weight"].shape[0] == 1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_score_does_not_depend_on_the_batch(layout: str) -> None:
    """Samples of very different loudness: a mean over the batch would show at once."""
    torch.manual_seed(0)
    model = Ranker(layout).double().eval()
    spectra = torch.randn(4, 1, 65, 94, dtype=torch.float64) * torch.tensor([1.0, 10, 100, 0.1]).view(4, 1, 1, 1) - 40
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
