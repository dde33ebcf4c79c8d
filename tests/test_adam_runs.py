"""Runs of checkpoints by Adam whose gradients are divided by its frozen denominator: from files through a real worker to scores."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lab
import numpy as np
import pytest
import torch
from test_pages import texts_of, viewer
from test_tasks import cross_entropy, gradients
from torch import Tensor, nn

from tracin_core.data.files import read_json, write_json
from tracin_core.engine.models import build_model
from tracin_core.errors import ViewError
from tracin_core.recipe import Recipe
from tracin_core.records.runs import Run
from tracin_core.records.trainings import settings_of
from tracin_core.records.workspace import Workspace, open_workspace

FORMS = ("adam", "adam_full")
# float32 kernels against float64 gradients: of each score, and of a middling one where terms of both signs meet
FLOAT32 = 1e-3
CLASSES: dict[str, Any] = {"kind": "classification", "loss": "cross_entropy"}
ORDER: dict[str, Any] = {"kind": "ranking", "loss": "margin", "margin": 5.0}


@dataclass
class Training:
    """Checkpoints of three epochs, and the optimiser's own state at each: v / (1 - beta2^t) and eps, parameter by parameter."""

    recipe: Recipe
    states: dict[int, list[tuple[Tensor, float]]] = field(default_factory=dict)

    def denominators(self, epoch: int, form: str) -> np.ndarray:
        """D of all parameters in a row, entry by entry."""
        parts = []
        for moment, eps in self.states[epoch]:
            divided = moment.clone()
            if form == "adam" and moment.dim() == 2:
                for i, j in itertools.product(range(len(moment)), range(moment.shape[1])):
                    divided[i, j] = moment[i].mean() * moment[:, j].mean() / moment.mean()
            parts.append((divided.sqrt() + eps).flatten().numpy())
        return np.concatenate(parts)


def train(
    recipe: Recipe, loss: Callable[[nn.Module], Tensor], optimizer_of: Callable[[nn.Module], torch.optim.Optimizer]
) -> Training:
    torch.manual_seed(0)
    folder, model = recipe.checkpoints.folder, build_model(recipe.model)
    folder.mkdir(parents=True)
    optimizer, kept = optimizer_of(model), Training(recipe)
    for epoch in range(4):
        for _ in range(5 if epoch else 0):
            optimizer.zero_grad()
            loss(model).backward()
            optimizer.step()
        content = {"epoch": epoch, "model_state_dict": model.state_dict(), "optimizer_state_dict": optimizer.state_dict()}
        torch.save(content, folder / f"model_epoch_{epoch}.pt")
        kept.states[epoch] = [state_of(optimizer, parameter) for parameter in model.parameters()] if epoch else []
    return kept


def state_of(optimizer: torch.optim.Optimizer, parameter: Tensor) -> tuple[Tensor, float]:
    state = optimizer.state[parameter]
    group = next(group for group in optimizer.param_groups if any(parameter is own for own in group["params"]))
    return state["exp_avg_sq"].double() / (1 - group["betas"][1] ** float(state["step"])), group["eps"]


def in_two_groups(model: nn.Module) -> torch.optim.Optimizer:
    *first, weight, bias = model.parameters()
    return torch.optim.AdamW([{"params": first}, {"params": [weight, bias], "eps": 1e-3, "betas": (0.8, 0.95)}], lr=0.02)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    workspace = open_workspace(tmp_path_factory.mktemp("adam"))
    yield workspace
    lab.stop_worker(workspace)


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Training]:
    """A classifier in two groups of parameters, and a ranker that only ever saw differences, so that its last bias hardly moved."""
    root = tmp_path_factory.mktemp("trained")
    file = lab.write_arrays(root / "points.npz")
    with np.load(file) as arrays:
        x, label, order = (torch.from_numpy(arrays[name]) for name in ("x", "kind", "order"))
    first, second = torch.triu_indices(len(x), len(x), 1)
    sign = torch.sign(order[first] - order[second])

    def pairs(model: nn.Module) -> Tensor:
        score, drawn = model(x).reshape(-1), torch.randperm(len(sign))[:64]
        return torch.relu(5 - sign * (score[first] - score[second]))[drawn][sign[drawn] != 0].mean()

    return {
        "classes": train(
            lab.arrays_recipe(file, root / "classes", "kind", CLASSES, 3),
            lambda model: nn.functional.cross_entropy(model(x), label),
            in_two_groups,
        ),
        "order": train(
            lab.arrays_recipe(file, root / "order", "order", ORDER, 1),
            pairs,
            lambda model: torch.optim.Adam(model.parameters(), lr=0.02),
        ),
    }


def divided(recipe: Recipe, form: str, **changes: Any) -> Recipe:
    settings = recipe.to_dict()
    return Recipe.from_dict({**settings, **changes, "engine": {**settings["engine"], "precondition": form}})


def computed(place: Workspace, recipe: Recipe) -> Run:
    run = place.compute(recipe)
    assert isinstance(run, Run)
    return run


def assert_near(found: np.ndarray, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(found, wanted, rtol=FLOAT32, atol=FLOAT32 * np.median(np.abs(wanted[wanted != 0])))


@pytest.mark.parametrize("kernel", ["label_logit", "outputs"])
@pytest.mark.parametrize("form", FORMS)
def test_influences_of_classes_are_those_of_the_divided_gradients(
    place: Workspace, trainings: dict[str, Training], form: str, kernel: str
) -> None:
    training = trainings["classes"]
    run = computed(place, divided(training.recipe, form, task={**CLASSES, "kernel": kernel}))
    assert run.checkpoints["epoch"].tolist() == [1, 2, 3]
    rows, columns = (gradients(place, run, cross_entropy, side) for side in ("train", "validation"))
    inverse = np.array([1 / training.denominators(epoch, form) for epoch in (1, 2, 3)])
    view = run.view()
    assert_near(view.influence(), np.einsum("cip,cp,cjp->ij", rows, inverse, columns))
    assert_near(view.self_influence(), np.einsum("cip,cp,cip->i", rows, inverse, rows))
    assert not np.allclose(view.influence(), computed(place, training.recipe).view().influence(), rtol=0.5)


@pytest.mark.parametrize("form", FORMS)
def test_influences_of_pairs_are_those_of_the_divided_gradients(
    place: Workspace, trainings: dict[str, Training], form: str
) -> None:
    """What is alike in all gradients, as the last bias's, cancels in every pair; 1 / D would have it bury all else in single precision."""
    training = trainings["order"]
    run = computed(place, divided(training.recipe, form))
    assert 1 / training.denominators(3, form)[-1] > 1e7

    def sides(side: str, table: Any) -> np.ndarray:
        of_scores = gradients(place, run, lambda outputs, _: outputs[0], side)
        ends, target = table[["first", "second"]].to_numpy(), table["target"].to_numpy()
        outputs = run.kernels.train_outputs if side == "train" else run.kernels.test_outputs
        slopes = np.where(5.0 - target * (outputs[:, ends[:, 0]] - outputs[:, ends[:, 1]]) >= 0, -target, 0)
        return np.asarray(slopes[..., None] * (of_scores[:, ends[:, 0]] - of_scores[:, ends[:, 1]]))

    rows, columns = sides("train", run.train_pairs), sides("validation", run.test_pairs)
    inverse = np.array([1 / training.denominators(epoch, form) for epoch in (1, 2, 3)])
    assert_near(run.view().influence(), np.einsum("cip,cp,cjp->ij", rows, inverse, columns))
    assert_near(run.view().self_influence(), np.einsum("cip,cp,cip->i", rows, inverse, rows))
    log = "\n".join(line for job in place.jobs() for line in place.job_log(job.id))
    assert "epoch 0 is left out: Adam had taken no step yet" in log


def test_a_run_says_by_which_formula_its_scores_are(
    place: Workspace, trainings: dict[str, Training], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, by_adam = computed(place, trainings["classes"].recipe), computed(place, divided(trainings["classes"].recipe, "adam"))
    assert (plain.other_optimizer, by_adam.other_optimizer, by_adam.trained_by_other) == ("Adam", None, "Adam")
    checks = [run.health().set_index("check") for run in (plain, by_adam)]
    assert ["sgd_formula" in table.index for table in checks] == [True, False]
    assert "row and column means" in checks[1].loc["adam_formula", "detail"]
    assert settings_of(plain) == settings_of(by_adam), "it is retrained by SGD, whatever its scores were divided by"
    shown = [texts_of(viewer(place.root, monkeypatch)("overview", run=run.id)) for run in (plain, by_adam)]
    assert ["SGD formula on Adam" in texts for texts in shown] == [True, False]
    assert ["Adam formula" in texts for texts in shown] == [False, True]
    with pytest.raises(ViewError, match='precondition = "none"'):
        _ = by_adam.methods().refitted_layer.representers


# As the program named them before there was a `precondition`.
PINNED = {
    "name": "x",
    "data": {"kind": "arrays", "file": "/data/points.npz", "target": "kind"},
    "model": {"kind": "mlp", "inputs": 4, "hidden": [5], "outputs": 3},
    "task": {"kind": "classification"},
    "checkpoints": {"folder": "/data/trained"},
}
PINNED_DIGEST = "6d409f5f6168a18ec5e216fa7100607c5eae5cced5fae9a093f6dc9a4317ada6"


def test_without_the_setting_every_digest_is_what_it_was(place: Workspace, trainings: dict[str, Training]) -> None:
    digests = [
        Recipe.from_dict({**PINNED, "engine": {"threads": 1, **more}}).digest()
        for more in ({}, {"precondition": "none"}, {"precondition": "adam"}, {"precondition": "adam_full"})
    ]
    assert digests[:2] == [PINNED_DIGEST] * 2
    assert len(set(digests)) == 3
    plain, by_adam = computed(place, trainings["classes"].recipe), computed(place, divided(trainings["classes"].recipe, "adam"))
    groups = [read_json(place.root / "kernels" / run.manifest.groups[-1] / "group.json") for run in (plain, by_adam)]
    assert groups[0]["precondition"] is None
    moment = plain.manifest.checkpoints[-1]["second_moment"]
    assert groups[1] == {**groups[0], "precondition": {"form": "adam", "second_moment": moment, "origin": None}}


def test_checkpoints_without_a_second_moment_are_refused_in_one_sentence(
    place: Workspace, trainings: dict[str, Training], tmp_path: Path
) -> None:
    recipe = divided(trainings["classes"].recipe, "adam")
    for number, (change, words) in enumerate(
        [
            (lambda content: content.pop("optimizer_state_dict"), "the file holds no state of Adam or AdamW"),
            (lambda content: content["optimizer_state_dict"]["state"].pop(1), "its optimizer never moved "),
        ]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        for epoch in (2, 3):
            content = torch.load(recipe.checkpoints.folder / f"model_epoch_{epoch}.pt", weights_only=True)
            if epoch == 3:
                change(content)
            torch.save(content, folder / f"model_epoch_{epoch}.pt")
        with pytest.raises(Exception, match=r"'model_epoch_3.pt' has no second moment to divide by: ") as caught:
            place.compute(divided(recipe, "adam", checkpoints={"folder": str(folder)}))
        assert words in str(caught.value)
        assert 'set precondition = "none"' in str(caught.value)


def test_a_checkpoint_taken_in_before_second_moments_were_read_is_read_again(
    trainings: dict[str, Training], tmp_path: Path
) -> None:
    place = open_workspace(tmp_path / "workspace")
    try:
        before = computed(place, trainings["classes"].recipe)
        for note in (place.root / "checkpoints" / "known").glob("*.json"):
            old = {name: value for name, value in read_json(note).items() if name not in ("second_moment", "no_second_moment")}
            write_json(note, old)
        for path in (place.root / "checkpoints").glob("*.safetensors"):
            if path.stem not in {one["digest"] for one in before.manifest.checkpoints}:
                path.unlink()
        run = computed(place, divided(trainings["classes"].recipe, "adam"))
        assert run.checkpoints["second_moment"].notna().all()
    finally:
        lab.stop_worker(place)
