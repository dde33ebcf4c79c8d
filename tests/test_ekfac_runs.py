"""Runs whose gradients are multiplied by the inverse of the training side's curvature: EKFAC by its definition, from files to scores."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import astuple
from pathlib import Path
from typing import Any

import filelock
import lab
import numpy as np
import pytest
import torch
from test_pages import texts_of, viewer
from test_tasks import binary, cross_entropy, gradients, squared
from torch import Tensor, nn

from tracin_core.data.files import read_json
from tracin_core.engine.checkpoints import load_weights
from tracin_core.engine.models import build_model
from tracin_core.errors import JobFailedError, RecipeError, ViewError
from tracin_core.recipe import Recipe
from tracin_core.records.faithfulness import FOLDER, faithfulness, start_lds
from tracin_core.records.maintenance import collect_garbage
from tracin_core.records.runs import Run
from tracin_core.records.trainings import settings_of
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


def test_a_curvature_that_no_run_divided_by_is_garbage(place: Workspace, recipes: dict[str, Recipe]) -> None:
    """With its note; and not while an unfinished run may need it."""

    def listed() -> set[str]:
        return {path.stem for kind, path, _ in map(astuple, collect_garbage(place.root, dry_run=True)) if kind == "curvatures"}

    stays = computed(place, divided(recipes["classes"]))
    dropped = computed(place, divided(recipes["classes"], split={"rule": "stratified", "train_fraction": 0.6}))
    lab.stop_worker(place)
    with filelock.FileLock(place.root / ".worker.lock", timeout=60):
        pass
    assert not listed()
    shutil.rmtree(place.root / "runs" / dropped.id)
    with place.catalogue.transaction() as connection:
        connection.execute("DELETE FROM run WHERE id = ?", (dropped.id,))
    weights = set(dropped.checkpoints["curvature"])
    assert weights < listed()
    assert len(listed()) == 2 * len(weights)
    assert not listed() & set(stays.checkpoints["curvature"])
    place.register_run(dropped.id, dropped.recipe)
    assert not listed()
    with place.catalogue.transaction() as connection:
        connection.execute("DELETE FROM run WHERE id = ?", (dropped.id,))


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
        methods.replay.sample_rise,
        methods.choose_damping,
        lambda: methods.damped(2.0).mapped("curvature"),
        lambda: methods.replay.preview(np.arange(len(methods.view.train)) < 2),
        lambda: run.methods_on(run.view()).replay.preview_seconds(),
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


def test_the_page_says_that_the_plain_run_s_trainings_would_serve_both(
    place: Workspace, recipes: dict[str, Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until that run is there."""
    look, split = viewer(place.root, monkeypatch), {"rule": "stratified", "train_fraction": 0.55}
    run = computed(place, divided(recipes["classes"], split=split))
    for plain in (False, True):
        if plain:
            computed(place, Recipe.from_dict({**recipes["classes"].to_dict(), "split": split}))
        assert ("Compute the plain run of these checkpoints first" in texts_of(look("verify", run=run.id, lang="en"))) is not plain


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
