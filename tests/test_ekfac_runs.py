"""Runs whose gradients are multiplied by the inverse of the training side's curvature: EKFAC by its definition, from files to scores."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lab
import numpy as np
import pytest
import torch
from engine_cases import FLOAT64, Case, autograd_rows, image, joined, model_of, samples_of
from test_pages import texts_of, viewer
from test_preconditioning import dense, matrix_rows
from test_tasks import binary, cross_entropy, gradients, squared
from torch import Tensor, nn

from tracin_core.data.files import read_json
from tracin_core.engine import ekfac
from tracin_core.engine.checkpoints import load_weights
from tracin_core.engine.models import build_model
from tracin_core.errors import DataError, JobFailedError, MachineError, RecipeError, ViewError
from tracin_core.recipe import Recipe
from tracin_core.records.evaluations import settings_of
from tracin_core.records.faithfulness import FOLDER, faithfulness, start_lds
from tracin_core.records.runs import Run
from tracin_core.records.workspace import Workspace, open_workspace

# Float32 curvature and kernels against float64 ones: of each score, and of the largest, where terms of both signs meet.
FLOAT32 = 1e-5
OF_CURVATURE = ("curvature", "l_relatif", "theta_relatif", "training_time", "linearised_retraining", "trak", "representer_points")
TASKS: dict[str, tuple[str, dict[str, Any], int, Callable[..., Tensor]]] = {
    "classes": ("kind", {"kind": "classification", "loss": "cross_entropy"}, 3, cross_entropy),
    "classes, all outputs": ("kind", {"kind": "classification", "loss": "cross_entropy", "kernel": "outputs"}, 3, cross_entropy),
    "two classes, one output": ("two", {"kind": "classification", "loss": "binary_cross_entropy"}, 1, binary),
    "numbers": ("number", {"kind": "regression", "loss": "squared_error"}, 1, squared),
}


# ---- the curvature --------------------------------------------------------------------------------------------------------------


def test_the_roots_make_the_hessian_of_the_negative_log_likelihood() -> None:
    """Whatever the label; also of a sample that the model is nearly certain of, where 1 - p is lost in single precision."""
    logits = torch.tensor([[0.3, -1.0, 2.0], [0.0, 0.0, 0.0], [30.0, -5.0, 4.0]], dtype=torch.float64)
    roots = torch.stack(list(ekfac.fisher_roots(logits, "softmax")))
    for label in range(3):
        hessians = torch.stack([torch.autograd.functional.hessian(lambda z, y=label: -z.log_softmax(0)[y], row) for row in logits])
        torch.testing.assert_close(torch.einsum("cni,cnj->nij", roots, roots), hessians, rtol=1e-9, atol=1e-15)
    certain = torch.stack(list(ekfac.fisher_roots(torch.tensor([[30.0, 0.0]]), "softmax")))
    assert certain.square().sum() == pytest.approx(4 * np.exp(-30.0) / 2, rel=1e-5)
    (root,) = ekfac.fisher_roots(logits[:, :1], "sigmoid")
    chances = torch.sigmoid(logits[:, :1])
    torch.testing.assert_close(root**2, chances * (1 - chances), **FLOAT64)
    assert [each.tolist() for each in ekfac.fisher_roots(logits[:1, :1], "number")] == [[[1.0]]]


def test_the_second_moment_is_that_expected_over_the_model_s_own_labels() -> None:
    """Its trace, which no choice of bases changes: mean_n sum_y p_y |grad -log p_y|^2; and each diagonal in the bases."""
    case = Case(lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)), image(3), (3,))
    model, samples = model_of(case), samples_of(case, 10)
    found = ekfac.fisher(model, [samples[:7], samples[7:]], "softmax", batch_size=4)
    chances = model(samples).softmax(1).detach()
    for layer in ("0", "2"):
        outputs, inputs = found.bases[layer]
        expected = torch.zeros_like(found.eigenvalues[layer])
        for label in range(3):
            slopes = chances - nn.functional.one_hot(torch.tensor(label), 3)
            rows = matrix_rows(autograd_rows(model, samples, 10, slopes), model, layer).reshape(10, *expected.shape)
            turned = outputs.T @ rows @ inputs
            expected += (chances[:, label, None, None] * turned**2).mean(0)
        torch.testing.assert_close(found.eigenvalues[layer], expected, **FLOAT64)


def test_each_pass_over_a_chunk_is_told_once() -> None:
    """Two for each of the three roots of each of the two chunks."""
    case = Case(lambda: nn.Sequential(nn.Linear(3, 3)), image(3), (3,))
    samples, told = samples_of(case, 10), []
    ekfac.fisher(model_of(case), [samples[:7], samples[7:]], "softmax", batch_size=4, on_side=lambda: told.append(None))
    assert len(told) == 2 * 3 * 2


def test_damping_is_measured_by_the_mean_eigenvalue() -> None:
    """Of the whole network: trace(F) by the number of parameters."""
    case = Case(lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 1)), image(3), (1,))
    found = ekfac.fisher(model_of(case), [samples_of(case, 9)], "number", batch_size=4)
    model, samples = model_of(case), samples_of(case, 9)
    mean = float(joined(autograd_rows(model, samples, 9)).square().sum()) / 9 / sum(map(Tensor.numel, model.parameters()))
    assert found.mean == pytest.approx(mean)
    inverse = found.relative_inverse(0.5)
    assert set(inverse) == {"0", "1.weight", "1.bias", "2"}
    for name, values in found.eigenvalues.items():
        scales = inverse[name].scales if name in found.bases else inverse[name]
        torch.testing.assert_close(scales, 1 / (values + 0.5 * mean), **FLOAT64)
    with pytest.raises(DataError, match="A curvature of mean 0 with a damping of 1 has no inverse"):
        ekfac.Curvature({}, {"a": torch.zeros(2)}).relative_inverse(1.0)


class Branched(nn.Module):
    """One of its layers no training sample reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.aside, self.norm, self.last = nn.Linear(3, 4), nn.Linear(3, 4), nn.LayerNorm(3), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        taken = self.first(x)
        if (beside := x[:, 0] > 100).any():
            taken = torch.where(beside[:, None], self.aside(self.norm(x)), taken)
        return self.last(torch.tanh(taken))  # type: ignore[no-any-return]


def test_what_no_training_sample_reaches_has_no_curvature_but_the_damping() -> None:
    case = Case(Branched, image(3), (1,))
    model, samples = model_of(case), samples_of(case, 9)
    found = ekfac.fisher(model, [samples], "number", batch_size=4)
    mean = float(joined(autograd_rows(model, samples, 9)).square().sum()) / 9 / sum(map(Tensor.numel, model.parameters()))
    assert found.mean == pytest.approx(mean)
    inverse = found.relative_inverse(0.5)
    for name in ("aside.weight", "aside.bias", "norm.weight", "norm.bias"):
        expected = torch.full_like(model.get_parameter(name), 1 / (0.5 * mean))
        torch.testing.assert_close(inverse[name], expected, **FLOAT64)


@pytest.mark.parametrize(("outcome", "spread"), [("number", 1.0), ("sigmoid", 0.0), ("sigmoid", 1.0)])
def test_of_one_linear_layer_with_one_output_the_inverse_is_exact_where_every_sample_counts_alike(
    outcome: Any, spread: float
) -> None:
    """F = mean_n s_n x x^T has the eigenvectors of sum_n x x^T where all s_n are alike; else only its diagonal in these is kept."""
    case = Case(lambda: nn.Linear(4, 1), image(4), (1,))
    layer, samples = model_of(case), samples_of(case, 30)
    model = nn.Sequential(layer)
    with torch.no_grad():
        layer.weight.mul_(3 * spread)
        layer.bias.mul_(spread)
    found = ekfac.fisher(model, [samples], outcome)
    x = torch.cat([samples, torch.ones(30, 1).double()], 1)
    chances = torch.sigmoid(model(samples).detach())
    weights = chances * (1 - chances) if outcome == "sigmoid" else torch.ones(30, 1)
    exact = (weights * x).T @ x / 30
    kept = dense(found.inverse(0.1)["0"])
    wanted = torch.linalg.inv(exact + 0.1 * torch.eye(5).double())
    basis = found.bases["0"][1]
    torch.testing.assert_close(found.eigenvalues["0"][0], (basis.T @ exact @ basis).diagonal(), rtol=1e-8, atol=1e-10)
    assert found.mean * 5 == pytest.approx(float(exact.trace()))
    distance = float((kept - wanted).norm() / wanted.norm())
    if outcome == "sigmoid" and spread:
        assert 1e-4 < distance < 0.2
    else:
        assert distance < 1e-10


def test_bases_that_do_not_fit_into_memory_are_refused_before_they_are_computed() -> None:
    model = nn.Sequential(nn.Linear(300_000, 2))
    with pytest.raises(MachineError, match=r"the layer '0' alone has bases of 2 x 2 and 300001 x 300001\. Free memory"):
        ekfac.fisher(model, [torch.zeros(2, 300_000)], "softmax")


# ---- whole runs -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    workspace = open_workspace(tmp_path_factory.mktemp("ekfac"))
    yield workspace
    lab.stop_worker(workspace)


@pytest.fixture(scope="module")
def recipes(place: Workspace) -> dict[str, Recipe]:
    """Of each task, trained in the workspace; all on the same points, of which no two are alike: equal eigenvalues have no one basis."""
    file = lab.write_arrays(place.root / "recordings" / "points.npz")
    with np.load(file) as arrays:
        content = dict(arrays)
    noise = np.random.default_rng(6).normal(size=content["x"].shape)
    np.savez(file, **{**content, "x": (content["x"] + noise).astype(np.float32)})
    found = {}
    for name, (target, task, outputs, _) in TASKS.items():
        folder = place.root / "trainings" / f"{target}_{outputs}"
        recipe = lab.arrays_recipe(file, folder, target, task, outputs)
        if not folder.exists():
            place.queue.wait(place.start_training(recipe, settings=lab.SHORT, folder=folder).id)
        found[name] = recipe
    return found


def divided(recipe: Recipe, damping: float = 1.0, **changes: Any) -> Recipe:
    settings = recipe.to_dict()
    engine = {**settings["engine"], "precondition": "ekfac", "damping": damping}
    return Recipe.from_dict({**settings, **changes, "engine": engine})


def computed(place: Workspace, recipe: Recipe) -> Run:
    run = place.compute(recipe)
    assert isinstance(run, Run)
    return run


def inverses_by_hand(place: Workspace, run: Run, damping: float) -> np.ndarray:
    """Of every summed checkpoint the matrix over all parameters, by one backward pass per sample and class in float64: [C, p, p]."""
    with np.load(run.recipe.data.place) as arrays:
        rows = [list(arrays["id"]).index(sample) for sample in run.splits["train"]["id"]]
        x = torch.from_numpy(arrays["x"][rows]).double()
    found = []
    for checkpoint in run.manifest.checkpoints:
        if checkpoint["epoch"] not in run.summed_epochs:
            continue
        model = build_model(run.recipe.model)
        load_weights(model, place.root / "checkpoints", checkpoint["digest"])
        model = model.double()
        layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
        parts = [layer_by_hand(model, layer, x, run.task) for layer in layers]
        mean = float(torch.cat([eigenvalues for _, eigenvalues in parts]).mean())
        blocks = [basis @ torch.diag(1 / (eigenvalues + damping * mean)) @ basis.T for basis, eigenvalues in parts]
        order = [id(parameter) for layer in layers for parameter in (layer.weight, layer.bias)]
        assert order == [id(parameter) for parameter in model.parameters()]
        found.append(torch.block_diag(*blocks).numpy())
    return np.array(found)


def layer_by_hand(model: nn.Module, layer: nn.Linear, x: Tensor, task: str) -> tuple[Tensor, Tensor]:
    """Eigenvectors and eigenvalues of F' of one layer, in the order of its weight, row by row, and then its bias."""
    seen: list[Tensor] = []
    hook = layer.register_forward_hook(lambda _, inputs, __: seen.append(torch.cat([inputs[0][0], torch.ones(1).double()])))
    below, above, matrices = [], [], []
    for sample in x:
        for cotangent in roots_by_hand(model(sample[None])[0].detach(), task):
            model.zero_grad()
            (model(sample[None])[0] @ cotangent).backward()
            matrices.append(torch.cat([layer.weight.grad, layer.bias.grad[:, None]], 1))
            above.append(layer.bias.grad.clone())
            below.append(seen[-1].detach())
    hook.remove()
    a, b, g = torch.stack(below), torch.stack(above), torch.stack(matrices)
    basis = torch.kron(torch.linalg.eigh(b.T @ b)[1], torch.linalg.eigh(a.T @ a)[1])
    eigenvalues = (g.flatten(1) @ basis).square().sum(0) / len(x)
    p, q = g.shape[1:]
    places = torch.arange(p * q).reshape(p, q)
    order = torch.cat([places[:, :-1].flatten(), places[:, -1]])
    return basis[order], eigenvalues


def roots_by_hand(outputs: Tensor, task: str) -> list[Tensor]:
    if task == "regression":
        return [torch.ones(1).double()]
    if len(outputs) == 1:
        chance = torch.sigmoid(outputs)
        return [(chance * (1 - chance)).sqrt()]
    chances = outputs.softmax(0)
    return [chances[c].sqrt() * (torch.eye(len(outputs)).double()[c] - chances) for c in range(len(outputs))]


def assert_near(found: np.ndarray, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(found, wanted, rtol=FLOAT32, atol=FLOAT32 * np.abs(wanted).max())


@pytest.mark.parametrize("name", TASKS)
def test_scores_are_those_of_gradients_by_the_inverse_curvature(place: Workspace, recipes: dict[str, Recipe], name: str) -> None:
    loss = TASKS[name][3]
    for damping in (0.3, 1.0):
        run = computed(place, divided(recipes[name], damping))
        rows, columns = (gradients(place, run, loss, side) for side in ("train", "validation"))
        inverses = inverses_by_hand(place, run, damping)
        assert_near(run.view().influence(), np.einsum("cip,cpq,cjq->ij", rows, inverses, columns))
        assert_near(run.view().self_influence(), np.einsum("cip,cpq,ciq->i", rows, inverses, rows))
    plain = computed(place, recipes[name]).view().influence()
    scaled = run.view().influence() * np.linalg.norm(plain) / np.linalg.norm(run.view().influence())
    assert np.linalg.norm(scaled - plain) > 0.1 * np.linalg.norm(plain), "another order, not another scale"


def kept(place: Workspace) -> dict[str, int]:
    """Notes of curvatures, and when each was written."""
    return {path.name: path.stat().st_mtime_ns for path in (place.root / "checkpoints" / "curvatures").glob("*.json")}


def test_another_damping_takes_no_new_pass_and_other_samples_do(place: Workspace, recipes: dict[str, Recipe]) -> None:
    one = computed(place, divided(recipes["classes"]))
    before = kept(place)
    other = computed(place, divided(recipes["classes"], 7.0))
    assert kept(place) == before
    assert one.checkpoints["curvature"].tolist() == other.checkpoints["curvature"].tolist()
    assert not set(one.manifest.groups) & set(other.manifest.groups)
    groups = [read_json(place.root / "kernels" / run.manifest.groups[-1] / "group.json")["precondition"] for run in (one, other)]
    curvature = one.manifest.checkpoints[-1]["curvature"]
    assert groups == [{"curvature": curvature, "damping": damping, "form": "ekfac"} for damping in (1.0, 7.0)]
    fewer = computed(place, divided(recipes["classes"], split={"rule": "stratified", "train_fraction": 0.5}))
    assert len(kept(place)) == len(before) + len(fewer.checkpoints)
    assert not set(fewer.checkpoints["curvature"]) & set(one.checkpoints["curvature"])


@pytest.mark.parametrize("harm", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-1])])
def test_a_lost_or_damaged_curvature_is_computed_again_to_the_same_bytes(
    place: Workspace, recipes: dict[str, Recipe], harm: Callable[[Path], object]
) -> None:
    run = computed(place, divided(recipes["numbers"]))
    path = place.root / "checkpoints" / f"{run.manifest.checkpoints[-1]['curvature']}.safetensors"
    content = path.read_bytes()
    harm(path)
    shutil.rmtree(place.root / "kernels" / run.manifest.groups[-1])
    shutil.rmtree(place.root / "runs" / run.id)
    again = computed(place, divided(recipes["numbers"]))
    assert path.read_bytes() == content
    assert again.manifest.groups == run.manifest.groups


def test_a_model_that_is_certain_of_everything_has_no_curvature(place: Workspace, recipes: dict[str, Recipe]) -> None:
    folder = place.root / "trainings" / "certain"
    folder.mkdir()
    content = torch.load(recipes["classes"].checkpoints.folder / "model_epoch_2.pt", weights_only=True)
    content["model_state_dict"] = {name: 1e6 * value for name, value in content["model_state_dict"].items()}
    torch.save(content, folder / "model_epoch_2.pt")
    with pytest.raises(JobFailedError, match=r"'model_epoch_2.pt' has no curvature to divide by: the model is certain"):
        place.compute(divided(recipes["classes"], checkpoints={"folder": str(folder)}))


def test_a_recipe_says_what_ekfac_is_of(recipes: dict[str, Recipe]) -> None:
    settings = recipes["classes"].to_dict()
    assert not {"precondition", "damping"} & settings["engine"].keys()
    digests = {divided(recipes["classes"], damping).digest() for damping in (0.5, 1.0)} | {recipes["classes"].digest()}
    assert len(digests) == 3
    assert divided(recipes["classes"], 0.5).plain.digest() == recipes["classes"].digest()
    adam = Recipe.from_dict({**settings, "engine": {**settings["engine"], "precondition": "adam"}})
    assert "damping" not in adam.to_dict()["engine"]
    with pytest.raises(RecipeError, match='damping would change nothing without precondition = "ekfac"'):
        Recipe.from_dict({**settings, "engine": {"damping": 2.0}})
    for damping in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(RecipeError, match=r"'engine.damping' is not usable"):
            divided(recipes["classes"], damping)
    with pytest.raises(RecipeError, match="is of losses of single samples, and ranking is of pairs"):
        divided(recipes["numbers"], task={"kind": "ranking"})


def test_a_run_says_so_and_refuses_methods_that_are_made_for_plain_kernels(
    place: Workspace, recipes: dict[str, Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipes["classes, all outputs"]
    plain, run = computed(place, recipe), computed(place, divided(recipe, 0.5))
    assert (plain.precondition, plain.damping, run.precondition, run.damping) == ("none", None, "ekfac", 0.5)
    assert settings_of(plain) == settings_of(run)
    assert "with a damping of 0.5" in run.health().set_index("check").loc["ekfac_formula", "detail"]
    shown = [texts_of(viewer(place.root, monkeypatch)("overview", run=one.id)) for one in (plain, run)]
    assert ["EKFAC formula" in texts for texts in shown] == [False, True]
    methods = run.methods()
    told = methods.available().set_index("method")["why_not"]
    assert {name for name in told.index if told[name]} == set(OF_CURVATURE)
    for ask in (
        lambda: methods.mapped("curvature"),
        lambda: methods.mapped("training_time"),
        methods.sample_rise,
        methods.choose_damping,
        lambda: methods.damped(2.0).mapped("curvature"),
        lambda: methods.preview(np.arange(len(methods.view.train)) < 2),
        lambda: run.methods_on(run.view()).preview_seconds(),
    ):
        with pytest.raises(ViewError, match="hold the inverse curvature already"):
            ask()
    by_logit = computed(place, divided(recipes["classes"], 0.5))
    with pytest.raises(ViewError, match="hold the inverse curvature already"):
        by_logit.methods().self_influence("trak")
    np.testing.assert_allclose(methods.mapped("last_checkpoint").self_influence(), run.view(checkpoints=[2]).self_influence())


def test_no_training_is_replayed_on_it_on_the_page_either(
    place: Workspace, recipes: dict[str, Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plain run of the same checkpoints is; of this one the page adds up influences."""
    line = {"m": 1, "T": -1e-9, "most": 5, "lang": "en"}
    for recipe, replayed in ((recipes["numbers"], True), (divided(recipes["numbers"]), False)):
        run = computed(place, recipe)
        texts = texts_of(viewer(place.root, monkeypatch)("threshold", run=run.id, **line))
        assert ("Foretold: the mean loss" in texts, "To first order instead" in texts) == (replayed, not replayed)
        assert ("hold the inverse curvature already" in texts) is not replayed


def test_the_dashboard_offers_it_for_single_samples(
    place: Workspace, recipes: dict[str, Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    test = viewer(place.root, monkeypatch)(
        "compute",
        kind="arrays",
        data="workspace/recordings/points.npz",
        y="kind",
        task="classification",
        model="mlp",
        hidden="5",
        folder=f"workspace/trainings/{recipes['classes'].checkpoints.folder.name}",
    )
    box = test.selectbox(key="precondition")
    assert len(box.options) == 2
    assert "damping" not in [field.key for field in test.number_input]
    box.select("ekfac").run()
    test.number_input(key="damping").set_value(3.0).run()
    test.button(key="start").click().run()
    job = place.jobs(limit=1)[0]
    place.queue.wait(job.id)
    assert place.run(str(place.queue.get(job.id).run_id)).damping == 3.0


def test_it_is_judged_on_the_trainings_of_the_plain_run(place: Workspace, recipes: dict[str, Recipe]) -> None:
    """The same halves, none trained again, and figures of its own."""
    plain, run = computed(place, recipes["classes"]), computed(place, divided(recipes["classes"]))
    place.queue.wait(start_lds(place, plain, subsets=20, repeats=1).id)
    (first,) = faithfulness(place, plain)
    trained = {path: path.stat().st_mtime_ns for path in (place.root / FOLDER).glob("*/*/training.json")}
    place.queue.wait(start_lds(place, run, subsets=20, repeats=1).id)
    (found,) = faithfulness(place, run)
    assert {path: path.stat().st_mtime_ns for path in (place.root / FOLDER).glob("*/*/training.json")} == trained
    assert (first.trainings, found.trainings) == (first.number, first.number)
    assert found.number != first.number
    assert {"curvature", "training_time", "linearised_retraining"} <= set(found.missing)
    assert first.per_test["tracin"].tolist() != found.per_test["tracin"].tolist()
    place.queue.wait(start_lds(place, run, subsets=7, repeats=1, drawn="groups", share=0.2).id)
    assert faithfulness(place, run)[0].trainings == faithfulness(place, run)[0].number
