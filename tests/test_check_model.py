"""Each check passes on a sound model, and fires on a model that deserves it."""

import pytest
import torch
import torch.nn.functional as F
from engine_cases import MODELS, Case, Head, cotangent_of, image, model_of, samples_of
from torch import Tensor, nn

from tracin_core.engine.health import Check, check_model
from tracin_core.errors import DataError

NAMES = ["finite_weights", "deterministic", "batch_coupling", "coverage", "products"]


def failed(checks: list[Check]) -> dict[str, str]:
    assert [check.name for check in checks] == NAMES
    assert [check.sentence_key for check in checks] == [f"health.{name}" for name in NAMES]
    return {check.name: check.detail for check in checks if not check.passed}


@pytest.mark.parametrize("name", [name for name in MODELS if name != "partly used"])
def test_a_sound_model_passes(name: str) -> None:
    case = MODELS[name]
    checks = check_model(model_of(case), samples_of(case, 10))
    assert failed(checks) == {}
    assert checks == check_model(model_of(case), samples_of(case, 10))


@pytest.mark.parametrize("layout", ["ranker small", "ranker large"])
def test_a_sound_model_passes_in_single_precision(layout: str) -> None:
    assert failed(check_model(model_of(MODELS[layout]).float(), samples_of(MODELS[layout], 10).float())) == {}


def test_a_cotangent_may_be_given() -> None:
    case = MODELS["classifier"]
    assert failed(check_model(model_of(case), samples_of(case, 10), cotangent=cotangent_of(case, 10))) == {}


class Around(nn.Module):
    """A linear model with something around it."""

    def __init__(self, before, after) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.before, self.after = before, after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(torch.tanh(self.layer(self.before(x)))).sum(1, keepdim=True)


def same(x: Tensor) -> Tensor:
    return x


def test_a_batch_mean_is_noticed() -> None:
    """The classic defect: inputs standardised over the whole batch."""
    model = Around(lambda x: (x - x.mean()) / (x.std() + 1e-8), same).double()
    found = failed(check_model(model, image(3)(6)))
    assert {"batch_coupling"} <= set(found) <= {"batch_coupling", "products"}
    assert "alone but" in found["batch_coupling"]
    assert "would depend on its neighbours" in found["batch_coupling"]


def test_batch_norm_without_statistics_is_noticed() -> None:
    model = Head(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False)).double()
    found = failed(check_model(model, image(3)(6)))
    assert "'layers.1' is a BatchNorm1d without running statistics" in found["batch_coupling"]


def test_samples_that_change_places_are_noticed() -> None:
    """Each output is right, but inside the model the samples stand in another order, which no output shows."""
    model = Around(lambda x: x.flip(0), lambda y: y.flip(0)).double()
    found = failed(check_model(model, image(3)(6)))
    assert list(found) == ["products"]
    assert "moves values between the samples" in found["products"]


def test_random_numbers_are_noticed() -> None:
    model = Around(same, lambda y: F.dropout(y, 0.5)).double()
    assert "draws random numbers" in failed(check_model(model, image(3)(6)))["deterministic"]


def test_broken_weights_are_noticed() -> None:
    model = Around(same, same).double()
    model.layer.weight.data[0, :2] = float("nan")
    checks = check_model(model, image(3)(6))
    assert "2 entries of 'layer.weight'" in failed(checks)["finite_weights"]
    assert checks[0].value == 2
    model = Head(nn.Linear(3, 2), nn.BatchNorm1d(2)).double()
    model.layers[1].running_var[1] = float("inf")
    assert "'layers.1.running_var'" in failed(check_model(model, image(3)(6)))["finite_weights"]


def test_parameters_that_take_no_part_are_noticed() -> None:
    checks = check_model(model_of(MODELS["partly used"]), image(3)(6))
    found = failed(checks)
    assert list(found) == ["coverage"]
    assert "4 trainable parameters take no part in the outputs, first 'unused.weight'" in found["coverage"]
    assert checks[3].value == pytest.approx(1 / 3)


def test_a_frozen_model_is_noticed() -> None:
    model = model_of(MODELS["conv net"]).requires_grad_(False)
    found = failed(check_model(model, samples_of(MODELS["conv net"], 4)))
    assert "No parameter is trainable" in found["coverage"]


def test_the_model_is_left_as_it_was_found() -> None:
    model = model_of(Case(MODELS["conv net"].build, image(2, 6, 6))).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    check_model(model, image(2, 6, 6)(4))
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_one_sample_cannot_be_checked() -> None:
    with pytest.raises(DataError, match="at least 2 samples, not 1"):
        check_model(model_of(MODELS["conv net"]), image(2, 6, 6)(1))
