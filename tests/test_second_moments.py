"""Adam's second moment: read from files of real trainings, refused where it does not fit exactly, and the kernel that it freezes."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from good_files import Room, room
from hostile_files import saved
from torch import Tensor, nn

from tracin_core.engine.adam import load_precondition
from tracin_core.engine.checkpoints import Checkpoint
from tracin_core.engine.classification import logit_kernel_by_layer, output_kernel_by_layer
from tracin_core.engine.kernel import memory_estimate, tangent_kernel, tangent_kernel_by_layer
from tracin_core.errors import CheckpointError, CheckpointMismatchError

pytest_plugins = ("good_files",)
pytestmark = pytest.mark.usefixtures("child")

FORMS = ("adam", "adam_full")
# A second moment is kept in single precision: its rounding of 6e-8, through a root and a quotient.
KEPT = {"rtol": 1e-6, "atol": 1e-9}


def network(outputs: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, outputs))


def trained(
    model: nn.Module, optimizer: torch.optim.Optimizer, *, steps: int = 7, loss: Callable[..., Tensor] = nn.functional.cross_entropy
) -> dict[str, Any]:
    """What a training saves after some steps on a few points."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model(torch.randn(6, 4, generator=generator)), torch.arange(6) % 3).backward()
        optimizer.step()
    return {"epoch": 3, "model_state_dict": model.state_dict(), "optimizer_state_dict": optimizer.state_dict()}


def two_groups(model: nn.Module, *, names: bool = False, turned: bool = False) -> list[dict[str, Any]]:
    """The last layer with settings of its own; the one before it has the same bias."""
    named = list(model.named_parameters())
    parts = [named[:-2], named[-2:]]
    given: list[Any] = [part if names else [parameter for _, parameter in part] for part in parts]
    groups = [{"params": given[0], "lr": 0.05}, {"params": given[1], "lr": 0.1, "eps": 1e-3, "betas": (0.8, 0.9)}]
    return groups[::-1] if turned else groups


def denominators(model: nn.Module, optimizer: torch.optim.Optimizer, form: str) -> dict[str, Tensor]:
    """D of each parameter, from the optimiser itself, entry by entry in float64."""
    found = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            moment = state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"].double()
            if form == "adam" and moment.dim() > 1:
                matrix = moment.reshape(len(moment), -1)
                whole = matrix.mean()
                rebuilt = [
                    [matrix[i].mean() * matrix[:, j].mean() / whole for j in range(matrix.shape[1])] for i in range(len(matrix))
                ]
                moment = torch.tensor(rebuilt, dtype=torch.float64).reshape(moment.shape)
            name = next(name for name, own in model.named_parameters() if own is parameter)
            found[name] = (moment / (1 - group["betas"][1] ** float(state["step"]))).sqrt() + group["eps"]
    return found


def frozen_kernel(
    model: nn.Module, samples: Tensor, divisors: dict[str, Tensor], values: Callable[[Tensor, int], Tensor]
) -> Tensor:
    """g_i^T D^-1 g_j by one backward pass per sample, of `values(outputs of the sample, its place)`."""
    twin = network(model[-1].out_features).double()
    twin.load_state_dict(model.state_dict())
    rows = []
    for place, sample in enumerate(samples.double()):
        twin.zero_grad()
        values(twin(sample[None])[0], place).backward()
        rows.append({name: parameter.grad.clone() for name, parameter in twin.named_parameters()})
    kernel = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    for i, one in enumerate(rows):
        for j, other in enumerate(rows):
            kernel[i, j] = sum((one[name] * other[name] / divisors[name]).sum() for name in one)
    return kernel


OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "adam": lambda model: torch.optim.Adam(model.parameters(), lr=0.05),
    "adamw": lambda model: torch.optim.AdamW(model.parameters(), lr=0.05, eps=1e-4, weight_decay=0.1),
    "amsgrad": lambda model: torch.optim.Adam(model.parameters(), lr=0.05, betas=(0.9, 0.5), amsgrad=True),
    "two_groups": lambda model: torch.optim.AdamW(two_groups(model)),
    "named_groups_turned": lambda model: torch.optim.Adam(two_groups(model, names=True, turned=True)),
}


def taken(folder: Path, content: Any, model: nn.Module | None = None) -> tuple[Room, Checkpoint]:
    found = room(folder, network() if model is None else model, {"model_epoch_3.pt": saved(content)})
    return found, found.accepted("model_epoch_3.pt")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_kernel_is_that_of_the_optimizer_s_own_state(name: str, form: Any, tmp_path: Path) -> None:
    """K_D[i, j] = g_i^T D^-1 g_j, whatever cotangent is asked for, from file to kernel."""
    model = network()
    optimizer = OPTIMIZERS[name](model)
    place, checkpoint = taken(tmp_path, trained(model, optimizer))
    assert checkpoint.second_moment is not None, checkpoint.no_second_moment
    precondition = load_precondition(model, place.store, checkpoint.second_moment, form)
    divisors = denominators(model, optimizer, form)
    samples, labels = torch.randn(5, 4), torch.arange(5) % 3
    exact = model.double()
    settings: Any = {"precondition": precondition, "batch_size": 2}

    def logit(outputs: Tensor, place: int) -> Tensor:
        p = torch.softmax(outputs, 0)[labels[place]]
        return torch.log(p / (1 - p))

    found = logit_kernel_by_layer(exact, samples.double(), labels, **settings).sum(0)
    torch.testing.assert_close(found, frozen_kernel(model, samples, divisors, logit), **KEPT)
    found = output_kernel_by_layer(exact, samples.double(), **settings).sum(0)
    for output in range(3):
        wanted = frozen_kernel(model, samples, divisors, lambda outputs, _, at=output: outputs[at])
        torch.testing.assert_close(found[output::3, output::3], wanted, **KEPT)
    one, two = torch.ones(5, 3, dtype=torch.float64), samples.double()
    by_layer = tangent_kernel_by_layer(exact, two, left_cotangent=one, **settings)
    torch.testing.assert_close(by_layer.sum(0), frozen_kernel(model, samples, divisors, lambda outputs, _: outputs.sum()), **KEPT)
    torch.testing.assert_close(by_layer.sum(0), tangent_kernel(exact, two, left_cotangent=one, **settings))
    assert memory_estimate(exact, two, left_cotangent=one, **settings).gradients > 0


def test_a_factored_moment_of_one_rank_is_exact(tmp_path: Path) -> None:
    """Of a layer that one sample trained, the gradient is an outer product, and so is its square."""
    model = nn.Sequential(nn.Linear(4, 3))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(1, 4)).square().sum().backward()
    optimizer.step()
    content = {"epoch": 1, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    place, checkpoint = taken(tmp_path, content, model)
    assert checkpoint.second_moment is not None
    full, rank_one = (load_precondition(model, place.store, checkpoint.second_moment, form) for form in ("adam_full", "adam"))
    for name in full:
        torch.testing.assert_close(rank_one[name], full[name], rtol=1e-4, atol=0)


def test_frozen_parameters_may_be_left_out_or_not(tmp_path: Path) -> None:
    for number, everything in enumerate((True, False)):
        model = network()
        model[0].requires_grad_(False)
        chosen = model.parameters() if everything else [own for own in model.parameters() if own.requires_grad]
        content = trained(model, torch.optim.Adam(chosen))
        place, checkpoint = taken(tmp_path / str(number), content, model)
        assert checkpoint.second_moment is not None, checkpoint.no_second_moment
        assert "0.weight" not in load_precondition(model, place.store, checkpoint.second_moment, "adam")


def test_a_copy_is_compared_with_its_name_and_its_model(tmp_path: Path) -> None:
    model = network()
    place, checkpoint = taken(tmp_path, trained(model, torch.optim.Adam(model.parameters())))
    digest = str(checkpoint.second_moment)
    with pytest.raises(CheckpointMismatchError, match="does not fit this model"):
        load_precondition(network(2), place.store, digest, "adam")
    with pytest.raises(CheckpointError, match="gone from the workspace"):
        load_precondition(model, place.store, "0" * 64, "adam")
    path = place.store / f"{digest}.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(CheckpointError, match="damaged"):
        load_precondition(model, place.store, digest, "adam")


# ---- what gives none ----------------------------------------------------------------------------------------------------------------


def changed(content: dict[str, Any], *path: Any, to: Any = None) -> dict[str, Any]:
    """The content with another value at this place of its optimiser's state; without one, where it is None."""
    optimizer = content["optimizer_state_dict"]
    copy: Any = {
        "state": {index: dict(entry) for index, entry in optimizer["state"].items()},
        "param_groups": [dict(group) for group in optimizer["param_groups"]],
    }
    inner = copy
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = to
    if to is None:
        del inner[path[-1]]
    return {**content, "optimizer_state_dict": copy}


def misfits() -> Iterable[tuple[str, Any, str]]:
    """Name, content, words of the reason."""
    model = network()
    good = trained(model, torch.optim.Adam(model.parameters()))
    first = "state", 0, "exp_avg_sq"
    nan, negative = torch.ones(5, 4), torch.ones(5, 4)
    nan[1, 2], negative[3, 0] = torch.nan, -1e-20
    yield "gone", changed(good, "state", 2), "never moved '2.weight'"
    yield "shape", changed(good, *first, to=torch.ones(4, 5)), "has shape [4, 5], the model's has [5, 4]"
    yield "nan", changed(good, *first, to=nan), "'0.weight' holds NaN or infinity"
    yield "infinite", changed(good, *first, to=torch.full((5, 4), torch.inf)), "holds NaN or infinity"
    yield "negative", changed(good, *first, to=negative), "has negative entries"
    yield "whole", changed(good, *first, to=torch.ones(5, 4, dtype=torch.int64)), "holds no real numbers"
    yield "number", changed(good, *first, to=1.0), "is no tensor"
    yield "missing", changed(good, *first), "is no tensor"
    yield "step_0", changed(good, "state", 0, "step", to=0), "the step of '0.weight' is 0"
    yield "step_half", changed(good, "state", 0, "step", to=torch.tensor(1.5)), "is 1.5, where a whole number"
    yield "step_nan", changed(good, "state", 0, "step", to=torch.tensor(torch.nan)), "the step of '0.weight' holds NaN"
    yield "step_shape", changed(good, "state", 0, "step", to=torch.ones(2)), "the step of '0.weight' has shape [2]"
    yield "step_gone", changed(good, "state", 0, "step"), "is no number"
    yield "betas", changed(good, "param_groups", 0, "betas"), "not the settings of Adam"
    yield "betas_1", changed(good, "param_groups", 0, "betas", to=(0.9, 1.0)), "beta2 is not from 0"
    yield "betas_one", changed(good, "param_groups", 0, "betas", to=(0.9,)), "not the settings of Adam"
    yield "eps", changed(good, "param_groups", 0, "eps", to=-1e-8), "eps is no number"
    yield "eps_text", changed(good, "param_groups", 0, "eps", to="1e-8"), "eps is no number"
    nothing = changed(changed(good, "param_groups", 0, "eps", to=0.0), *first, to=torch.zeros(5, 4))
    yield "divided", nothing, "would be divided by 0"
    yield "numbers", changed(good, "param_groups", 0, "params", to=["0"] * 6), "does not number its parameters"
    yield "twice", changed(good, "param_groups", 0, "params", to=[0, 1, 2, 3, 4, 4]), "a parameter in two groups"
    yield "fewer", changed(good, "param_groups", 0, "params", to=[0, 1, 2]), "3 parameters and the model 6, 6 of them trained"
    yield "none", {**good, "optimizer_state_dict": {**good["optimizer_state_dict"], "state": {}}}, "has taken no step"
    yield "several", {**good, "optimizer_state_dict": [good["optimizer_state_dict"]] * 2}, "the states of 2 optimizers"
    radam = network()
    yield "radam", trained(radam, torch.optim.RAdam(radam.parameters())), "not the settings of Adam"
    alike = network()
    parts = [{"params": list(alike[at].parameters())} for at in (0, 2, 4)]
    yield "turned", trained(alike, torch.optim.Adam(parts[::-1])), "the model's has [5, 4]"
    same = nn.Sequential(*[nn.Linear(4, 4) for _ in range(3)])
    halves = [{"params": list(same[at].parameters())} for at in (0, 1, 2)]
    yield "exchangeable", (same, trained(same, torch.optim.Adam(halves))), "groups 1 and 2 of its optimizer have the same shapes"
    names = trained(network(), torch.optim.Adam(network().named_parameters()), steps=0)
    named = changed(
        {**good, "optimizer_state_dict": names["optimizer_state_dict"]}, "param_groups", 0, "param_names", to=["x.y"] * 6
    )
    state = {**named["optimizer_state_dict"], "state": good["optimizer_state_dict"]["state"]}
    yield "names", {**good, "optimizer_state_dict": state}, "a parameter 'y', which the model lacks"


MISFITS = {name: (content, words) for name, content, words in misfits()}


@pytest.mark.parametrize("name", MISFITS)
def test_a_state_that_does_not_fit_is_said_in_words_and_nothing_is_guessed(name: str, tmp_path: Path) -> None:
    """The weights are good either way, and nothing but them is kept."""
    content, words = MISFITS[name]
    model, content = content if isinstance(content, tuple) else (network(), content)
    place, checkpoint = taken(tmp_path, content, model)
    assert checkpoint.second_moment is None
    assert words in str(checkpoint.no_second_moment)
    assert [path.stem for path in place.store.iterdir()] == [checkpoint.digest]


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_tensors_that_are_not_dense_never_come_this_far(tmp_path: Path) -> None:
    """A pickle that asks to build a sparse or a quantised tensor is refused as a whole, as it always was."""
    model = network()
    good = trained(model, torch.optim.Adam(model.parameters()))
    first = "state", 0, "exp_avg_sq"
    sparse, quantized = torch.eye(5, 4).to_sparse(), torch.quantize_per_tensor(torch.ones(5, 4), 0.1, 0, torch.quint8)
    files = {
        name: saved(changed(good, *first, to=value)) for name, value in (("sparse_1.pt", sparse), ("quantized_2.pt", quantized))
    }
    found = room(tmp_path, network(), files)
    assert all("which plain weights do not need" in str(outcome) for outcome in found.outcomes.values())
    assert list(found.store.iterdir()) == []


def test_records_of_other_optimizers_are_what_they_were(good_room: Room) -> None:
    """Nothing is said of a second moment where there was no Adam; old records without the field load."""
    for name in ("momentum_2.pt", "plain_sgd_3.pt", "rmsprop_4.pt", "bare_1.pt"):
        assert not {"second_moment", "no_second_moment"} & good_room.accepted(name).to_dict().keys()
    adam = good_room.accepted("adamw_1.pt")
    assert adam.second_moment is not None
    assert Checkpoint.from_dict(adam.to_dict()) == adam
    old = {key: value for key, value in adam.to_dict().items() if key != "second_moment"}
    assert Checkpoint.from_dict(old).second_moment is None
    kept = safetensors.torch.load_file(good_room.store / f"{adam.second_moment}.safetensors")
    assert {value.dtype for key, value in kept.items() if not key.endswith("/eps")} == {torch.float32}
