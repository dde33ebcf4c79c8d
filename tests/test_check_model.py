"""Each check passes on a sound model, and fires on a model that deserves it."""

import pytest
import torch
import torch.nn.functional as F
from engine_cases import MODELS, Case, Head, cotangent_of, image, model_of, samples_of
from torch import Tensor, nn

from tracin_core.engine.health import Check, check_model
from tracin_core.errors import DataError

NAMES = ["eval_mode", "finite_weights", "deterministic", "batch_coupling", "trainable", "coverage", "paths", "products"]


def failed(checks: list[Check]) -> dict[str, str]:
    assert [check.name for check in checks] == NAMES
    assert [check.sentence_key for check in checks] == [f"health.{name}" for name in NAMES]
    return {check.name: check.detail for check in checks if not check.passed}


@pytest.mark.parametrize("name", [name for name in MODELS if name not in {"partly used", "frozen part"}])
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


class StuckNorm(nn.BatchNorm1d):
    """A batch norm that does not leave training mode."""

    def train(self, mode: bool = True) -> nn.Module:
        return super().train(True)


def test_batch_norm_that_stays_in_training_mode_is_noticed() -> None:
    model = Head(nn.Linear(3, 4), StuckNorm(4)).double()
    found = failed(check_model(model, image(3)(6)))
    assert "'layers.1' is a StuckNorm that stays in training mode" in found["batch_coupling"]
    assert "1 layers are in training mode, first 'layers.1' (StuckNorm)" in found["eval_mode"]


@pytest.mark.parametrize("shape", [(4,), (4, 5)])
def test_batch_norm_called_as_in_training_is_noticed(shape: tuple[int, ...]) -> None:
    """As a function, whatever the mode; of vectors, one sample alone cannot even be normalised. Statistics are left as they were."""

    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            y = F.batch_norm(x, self.norm.running_mean, self.norm.running_var, self.norm.weight, self.norm.bias, training=True)
            return torch.tanh(y).flatten(1).cumsum(1).sum(1)

    model = Functional().double().eval()
    found = failed(check_model(model, image(*shape)(6)))
    assert "alone" in found["batch_coupling"]
    assert torch.equal(model.norm.running_mean, torch.zeros(4).double())


def test_layers_left_in_training_mode_are_noticed() -> None:
    """Scores do not change, because the engine computes them in eval mode; what they are compared with may."""
    model = Head(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).double().train()
    checks = check_model(model, image(3)(6))
    found = failed(checks)
    assert list(found) == ["eval_mode"]
    assert "2 layers are in training mode, first 'layers.1' (BatchNorm1d)" in found["eval_mode"]
    assert checks[0].value == 2


def test_a_frozen_layer_is_noticed() -> None:
    model = model_of(MODELS["frozen part"])
    checks = check_model(model, samples_of(MODELS["frozen part"], 4))
    found = failed(checks)
    assert list(found) == ["trainable"]
    assert "3 of 6 parameters are frozen, first 'layers.0.weight', and left out of every score" in found["trainable"]
    assert checks[NAMES.index("trainable")].value == pytest.approx(14 / 46)


def test_a_parameter_that_no_rule_reaches_is_told() -> None:
    """Every parameter is listed with what serves it."""
    told = {
        check.name: check for check in check_model(model_of(MODELS["bare parameters"]), samples_of(MODELS["bare parameters"], 4))
    }
    assert "No rule reaches 3 parameters, first 'scale'" in told["paths"].detail
    assert "scale: torch.func; factor: torch.func; layer.weight: rule: Linear; layer.bias: rule: Linear" in told["paths"].detail
    assert told["paths"].value == pytest.approx(12 / 19)
    ranker = {check.name: check for check in check_model(model_of(MODELS["ranker small"]), samples_of(MODELS["ranker small"], 4))}
    assert ranker["paths"].detail.startswith("Every trainable parameter is served by a rule. features.0.weight: rule: Conv2d;")
    assert ranker["paths"].value == 1


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
    assert checks[NAMES.index("finite_weights")].value == 2
    model = Head(nn.Linear(3, 2), nn.BatchNorm1d(2)).double()
    model.layers[1].running_var[1] = float("inf")
    assert "'layers.1.running_var'" in failed(check_model(model, image(3)(6)))["finite_weights"]


def test_parameters_that_take_no_part_are_noticed() -> None:
    checks = check_model(model_of(MODELS["partly used"]), image(3)(6))
    found = failed(checks)
    assert list(found) == ["coverage"]
    assert "4 trainable parameters take no part in the outputs, first 'unused.weight'" in found["coverage"]
    assert checks[NAMES.index("coverage")].value == pytest.approx(1 / 3)


def test_a_frozen_model_is_noticed() -> None:
    model = model_of(MODELS["conv net"]).requires_grad_(False)
    found = failed(check_model(model, samples_of(MODELS["conv net"], 4)))
    assert "No parameter is trainable" in found["coverage"]


def test_running_out_of_memory_is_not_the_models_fault() -> None:
    def exhausted(x: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(torch.OutOfMemoryError):
        check_model(Around(exhausted, same).double(), image(3)(4))


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
