"""The preview on the threshold page: what it says against the replay itself, against real trainings, and where there is none."""

import gc
import shutil
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lab
import numpy as np
import pytest
from conftest import texts_of
from lab import Studio
from streamlit.testing.v1 import AppTest
from test_import import files_of
from test_pages import said, viewer

from pages.shared import session
from pages.shared.i18n import LANGUAGES
from pages.shared.session import plain
from pages.shared.threshold import foretelling
from tracin_core import charts
from tracin_core.data.files import read_json, write_json
from tracin_core.recipe import Recipe
from tracin_core.records.evaluations import retrainings, start_retraining, taken_out
from tracin_core.records.faithfulness import FOLDER
from tracin_core.records.imports import import_scores
from tracin_core.records.runs import Run
from tracin_core.records.workspace import Workspace, open_workspace
from tracin_core.scores.actions import Action
from tracin_core.scores.comparison import Methods

RULE = {"threshold": -0.01, "min_occurrences": 1, "max_exclusions": 6}
LINE = {"m": 1, "T": -0.01, "most": 6}


@pytest.fixture
def look(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> Callable[..., AppTest]:
    view = viewer(studio.place.root, monkeypatch)
    return lambda **parameters: view("threshold", run=studio.run.id, **{**LINE, **parameters})


def sentence(table: Any, language: str = "en", key: str = "preview.sentence") -> str:
    told = {
        "loss": f"{table['loss'].mean():.4g}",
        "loss_after": f"{table['loss_after'].mean():.4g}",
        "change": f"{table['rise'].mean():+.2g}",
        "reached": f"{table['reached'].mean():.1%}",
        "reached_after": f"{table['reached_after'].mean():.1%}",
    }
    counts = {"better": int((table["rise"] < 0).sum()), "worse": int((table["rise"] > 0).sum()), "tests": len(table)}
    counts["same"] = len(table) - counts["better"] - counts["worse"]
    return said(language, key, **told, **counts)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize(
    ("mode", "action"),
    [
        ("ranking_pair", "exclude"),
        ("ranking_pair", "down_weight"),
        ("ranking_pair", "turn"),
        ("sample", "exclude"),
        ("sample", "down_weight"),
    ],
)
def test_the_page_says_what_the_replay_foretells(
    look: Callable[..., AppTest], studio: Studio, mode: Any, action: Action, language: str
) -> None:
    test = look(mode=mode, action=action, weight=0.4, lang=language)
    assert not test.exception
    assert not test.error
    methods = studio.run.methods()
    view = methods.view
    table = methods.replay.preview(view.named(view.exclusions(**RULE, pair_mode=mode)), action, weight=0.4)
    assert sentence(table, language) in texts_of(test)
    assert said(language, "preview.unknown") in texts_of(test)
    hit = table.nlargest(foretelling.WORST, "rise")
    shown = next(frame.value for frame in test.dataframe if "rise_of_loss" in frame.value)
    assert shown["rise_of_loss"].tolist() == [f"{value:+.3g}" for value in hit["rise"]]


def test_only_what_fits_the_list_is_offered(look: Callable[..., AppTest]) -> None:
    offered = {mode: look(mode=mode).button_group(key="action").options for mode in ("ranking_pair", "sample")}
    names = {action: said("en", f"verify.action.{action}") for action in ("exclude", "down_weight", "turn", "relabel")}
    assert offered["ranking_pair"] == [names["exclude"], names["down_weight"], names["turn"]]
    assert offered["sample"] == [names["exclude"], names["down_weight"]]


def test_an_empty_list_changes_nothing(look: Callable[..., AppTest]) -> None:
    assert said("en", "preview.nothing") in texts_of(look(T=-1e6))


def test_a_slow_preview_waits_for_a_press(look: Callable[..., AppTest], studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foretelling, "AT_ONCE", 0.0)
    test = look()
    assert "Foretold" not in texts_of(test)
    test.button(key="preview.ask").click().run()
    assert not test.error
    view = studio.run.view()
    expected = sentence(studio.run.methods().replay.preview(view.named(view.exclusions(**RULE))))
    assert expected in texts_of(test)
    test.number_input(key="most").set_value(2).run()
    assert "Foretold" not in texts_of(test)  # another list is another question


def test_a_slow_preview_of_another_run_waits_for_its_own_press(
    look: Callable[..., AppTest], studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose list names the same rows."""
    recipe = studio.run.recipe.to_dict()
    told = {**recipe, "name": "other batches", "engine": {**recipe["engine"], "batch_size": 5}}
    other = studio.place.compute(Recipe.from_dict(told))
    assert isinstance(other, Run)
    one, two = (view.named(view.exclusions(**RULE)) for view in (studio.run.view(), other.view()))
    np.testing.assert_array_equal(one, two)
    monkeypatch.setattr(foretelling, "AT_ONCE", 0.0)
    test = look()
    test.button(key="preview.ask").click().run()
    assert "Foretold" in texts_of(test)
    test.query_params["run"] = other.id
    test.run()
    assert not test.error
    assert "Foretold" not in texts_of(test)


def test_what_every_look_asks_for_stays_prepared_however_much_else_is_made(studio: Studio) -> None:
    view, made = studio.run.view(), []
    for drag in range(3 * session.KEPT):
        session.prepared(view, "levels", lambda: made.append("levels"))
        session.prepared(view, ("preview", drag), lambda: made.append("preview"))
    assert made.count("levels") == 1
    session.prepared(view, ("preview", 0), lambda: made.append("again"))
    assert made[-1] == "again"


def test_the_preview_keeps_no_view_alive(studio: Studio) -> None:
    """What is kept for as long as a view is must not hold that view."""
    view = studio.run.view()
    gone = weakref.ref(view)
    foretelling.before(studio.run, view)
    foretelling.foretold(studio.run, view, np.arange(len(view.train)) < 2, "exclude", 0.25)
    foretelling._methods.clear()
    del view
    gc.collect()
    assert gone() is None


def test_what_its_own_training_left_out_is_left_out_of_both_replays(studio: Studio) -> None:
    """As `left_out_before` names it: pairs, either way round, or samples."""
    view = studio.run.view()
    (pair, one, other), sample = view.train_pairs.loc[4, ["id", "id1", "id2"]], view.train_samples["id"][1]
    for line in (pair, f"{other}_{one}"):
        found = taken_out(studio.run, view.train_pairs, [line, sample])
        by_hand = [row.id == pair or sample in (row.id1, row.id2) for row in view.train_pairs.itertuples()]
        assert found.tolist() == by_hand
    assert not taken_out(studio.run, view.train_pairs, []).any()


# ---- how far it was right ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def retrained(studio: Studio) -> Iterator[str]:
    """A list that was really retrained, with its pairs turned round."""
    chosen = studio.run.view().exclusions(**RULE)
    job = start_retraining(studio.place, studio.run, chosen, rule=RULE, seeds=2, draws=1, action="turn")
    assert studio.place.queue.wait(job.id).state == "done"
    yield job.request["evaluation"]
    shutil.rmtree(studio.place.root / "evaluations" / job.request["evaluation"])


def test_foretold_stands_beside_measured(look: Callable[..., AppTest], studio: Studio, retrained: str) -> None:
    """Measured: the validation loss with the list minus that without, of each seed, from the trainings' own files."""
    (result,) = retrainings(studio.place, studio.run)
    chosen = studio.run.view().exclusions(**RULE)
    assert result.lines == tuple(chosen["id"])
    folder = studio.place.root / "evaluations" / retrained
    losses = {
        arm: [read_json(folder / f"epochs-{arm}-{seed}" / "training.json")["history"][-1]["validation_loss"] for seed in (1, 2)]
        for arm in ("list", "none")
    }
    moved = float(np.mean(np.subtract(losses["list"], losses["none"])))
    rise = studio.run.methods().replay.preview(studio.run.view().named(chosen), "turn")["rise"].mean()
    test = look()
    table = next(frame.value for frame in test.dataframe if "measured" in frame.value)
    assert table["foretold"].tolist() == [f"{rise:+.3g}"]
    assert table["measured"][0].startswith(f"{moved:+.3g} (")
    agree = int(np.sign(moved) == np.sign(rise))
    assert said("en", "preview.lists", agree=agree, n=1) in texts_of(test)
    assert said("en", "preview.unknown") not in texts_of(test)


def test_an_older_result_is_said_to_be_silent(look: Callable[..., AppTest], studio: Studio, retrained: str) -> None:
    """It names no list, or tells nothing of the validation side."""
    file = studio.place.root / "evaluations" / retrained / "result.json"
    told = read_json(file)
    for older in (
        {name: value for name, value in told.items() if name != "arms"},
        {**told, "table": [{name: value for name, value in row.items() if "validation" not in name} for row in told["table"]]},
    ):
        write_json(file, older)
        words = texts_of(look())
        assert said("en", "preview.lists.unsaid", n=1) in words
        assert said("en", "preview.unknown") not in words


def test_what_was_retrained_of_other_scores_is_not_compared(look: Callable[..., AppTest], studio: Studio, retrained: str) -> None:
    file = studio.place.root / "evaluations" / retrained / "result.json"
    write_json(file, {**read_json(file), "digest": "0" * 64})
    test = look()
    assert said("en", "preview.lists.changed", n=1) in texts_of(test)
    assert not any("measured" in frame.value for frame in test.dataframe)


def test_lists_whose_previews_are_slow_are_compared_when_asked_for(
    look: Callable[..., AppTest], studio: Studio, retrained: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foretelling, "AT_ONCE", 0.0)
    test = look()
    assert said("en", "preview.lists.slow", n=1) in texts_of(test)
    assert not any("measured" in frame.value for frame in test.dataframe)
    test.button(key="lists.ask").click().run()
    assert any("measured" in frame.value for frame in test.dataframe)
    assert said("en", "preview.lists.slow", n=1) not in texts_of(test)


def test_foretold_of_fewer_tests_is_still_of_all_that_a_training_is_measured_on(
    studio: Studio, retrained: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training's validation loss is the mean over all pairs of that side, however few of them are a run's tests."""
    recipe = studio.run.recipe.to_dict()
    run = studio.place.compute(Recipe.from_dict({**recipe, "name": "few", "task": {**recipe["task"], "test_pairs": 2}}))
    assert isinstance(run, Run)
    every = studio.run.view()
    assert len(run.view().test_pairs) == 2 < len(every.test_pairs)
    folder = studio.place.root / "evaluations" / "few"
    told = read_json(studio.place.root / "evaluations" / retrained / "result.json")
    write_json(folder / "result.json", {**told, "run": run.id, "digest": run.digest})
    try:
        test = viewer(studio.place.root, monkeypatch)("threshold", run=run.id, **LINE)
    finally:
        shutil.rmtree(folder)
    rise = studio.run.methods().replay.preview(every.named(every.exclusions(**RULE)), "turn")["rise"].mean()
    table = next(frame.value for frame in test.dataframe if "measured" in frame.value)
    assert table["foretold"].tolist() == [f"{rise:+.3g}"]


def test_the_agreement_over_subsets_is_that_of_the_newest_evaluation(look: Callable[..., AppTest], studio: Studio) -> None:
    def wrote(name: str, created: float, value: float, method: str = "linearised_retraining") -> None:
        row = {"method": method, "lds": value, "low": value - 0.1, "high": value + 0.1, "tests": 9, "delta": None}
        about = {"run_id": studio.run.id, "digest": studio.run.digest, "unit": "sample", "drawn": "halves", "share": 0.5}
        about |= {"subsets": 40, "repeats": 2, "reported_on": 20, "simulated": True, "assumed": [], "who": "", "ceiling": 0.8}
        write_json(studio.place.root / FOLDER / name / "result.json", {
            **about, "created": created, "methods": [row], "per_test": [], "missing": {},
        })  # fmt: skip

    wrote("old", 1.0, 0.3)
    wrote("new", 2.0, 0.6)
    wrote("newest", 3.0, 0.9, "tracin")
    try:
        words = texts_of(look())
    finally:
        shutil.rmtree(studio.place.root / FOLDER)
    assert "agree with those of real trainings to **0.60** (95% interval 0.50 to 0.70" in words
    assert said("en", "foretold.ceiling", value="0.80") in words
    assert said("en", "preview.unknown") not in words


# ---- where nothing can be replayed --------------------------------------------------------------------------------------------------


def first_order_words(rise: np.ndarray) -> str:
    told = {"worse": int((rise > 0).sum()), "better": int((rise < 0).sum()), "tests": len(rise), "sum": charts.short(rise.mean())}
    return said("en", "preview.first_order", **told)


def test_without_an_epoch_0_influences_are_added_up(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pair by pair from the table of influences; of a list of recordings a pair of two of them counts as often."""
    recipe = {**studio.run.recipe.to_dict(), "name": "later"}
    recipe["checkpoints"] = {**recipe["checkpoints"], "epochs": [1, 2]}
    run = studio.place.compute(Recipe.from_dict(recipe))
    assert isinstance(run, Run)
    view, look_at = run.view(), viewer(studio.place.root, monkeypatch)
    for mode in ("ranking_pair", "sample"):
        ids = set(view.exclusions(**RULE, pair_mode=mode)["id"])
        named = [sum(name in ids for name in (row.id, row.id1, row.id2)) for row in view.train_pairs.itertuples()]
        assert mode == "ranking_pair" or max(named) == 2
        for action, weight in (("exclude", 0.0), ("down_weight", 0.4)):
            test = look_at("threshold", run=run.id, **LINE, mode=mode, action=action, weight=0.4)
            assert not test.error
            given_up = 1 - weight ** np.array(named, dtype=float)
            assert first_order_words((given_up[:, None] * view.influence()).sum(axis=0)) in texts_of(test)
            assert plain("this run has the epochs 1, 2; keep a checkpoint of epoch 0.") in texts_of(test)
    assert said("en", "preview.first_order.no") in texts_of(look_at("threshold", run=run.id, **LINE, action="turn"))


def test_what_was_left_out_before_adds_up_to_nothing(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaving it out again changes no training, as in the replay."""
    listed = studio.run.view().exclusions(**RULE)["id"].tolist()[:3]
    file, folder = studio.place.root / "exports" / "three.txt", studio.place.root / "trainings" / "three"
    file.parent.mkdir(exist_ok=True)
    file.write_text("\n".join(listed), encoding="utf-8")
    settings = {"epochs": 2, "save_epochs": (1, 2)}
    studio.place.queue.wait(
        studio.place.start_training(studio.run.recipe, settings=settings, folder=folder, exclusions_file=file).id
    )
    recipe = {**studio.run.recipe.to_dict(), "name": "three", "checkpoints": {"folder": folder, "epochs": [1, 2]}}
    run = studio.place.compute(Recipe.from_dict(recipe))
    assert isinstance(run, Run)
    view = run.view()
    chosen = view.exclusions(**{**RULE, "max_exclusions": 1_000})["id"]
    met, new = view.train_pairs["id"].isin(chosen), ~view.train_pairs["id"].isin(listed)
    assert (met & ~new).any()
    test = viewer(studio.place.root, monkeypatch)("threshold", run=run.id, **{**LINE, "most": 1_000})
    assert not test.error
    assert first_order_words(view.influence()[(met & new).to_numpy()].sum(axis=0)) in texts_of(test)


def test_scores_from_files_have_no_kernel(studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = open_workspace(tmp_path / "workspace")
    run = import_scores(place, **files_of(tmp_path))
    view = run.view()
    threshold = view.suggested_threshold(1)
    test = viewer(place.root, monkeypatch)("threshold", run=run.id, m=1, T=threshold)
    assert not test.error
    removed = view.removed(view.exclusions(threshold, 1, 50))
    assert first_order_words(view.influence()[removed].sum(axis=0)) in texts_of(test)
    assert said("en", "preview.imported") in texts_of(test)


# ---- other tasks ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def points(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Workspace, Callable[..., Run]]]:
    place = open_workspace(tmp_path_factory.mktemp("points"))
    file = lab.write_arrays(tmp_path_factory.mktemp("arrays") / "points.npz")

    def run_of(target: str, task: dict[str, Any], outputs: int) -> Run:
        folder = place.root / "trainings" / f"{target}-{outputs}-{len(task)}-{task.get('kernel', '')}"
        trained = {name: value for name, value in task.items() if name != "kernel"}
        job = place.start_training(lab.arrays_recipe(file, folder, target, trained, outputs), settings=lab.SHORT, folder=folder)
        place.queue.wait(job.id)
        run = place.compute(lab.arrays_recipe(file, folder, target, task, outputs))
        assert isinstance(run, Run)
        return run

    yield place, run_of
    lab.stop_worker(place)


@pytest.mark.parametrize(
    ("target", "task", "outputs", "action"),
    [
        ("kind", {"kind": "classification", "kernel": "outputs"}, 3, "relabel"),
        ("two", {"kind": "classification"}, 1, "relabel"),
        ("number", {"kind": "regression"}, 1, "down_weight"),
    ],
)
def test_samples_have_their_own_words_and_actions(
    points: tuple[Workspace, Callable[..., Run]],
    monkeypatch: pytest.MonkeyPatch,
    target: str,
    task: dict[str, Any],
    outputs: int,
    action: Action,
) -> None:
    place, run_of = points
    run = run_of(target, task, outputs)
    methods: Methods = run.methods()
    view = methods.view
    threshold = float(np.unique(view.deciding_scores(1, "sample"))[:2].mean())  # points of a class are alike
    test = viewer(place.root, monkeypatch)("threshold", run=run.id, m=1, T=threshold, action=action)
    assert not test.error
    assert not test.exception
    table = methods.replay.preview(view.named(view.exclusions(threshold, 1, 50, "sample")), action)
    if target == "number":
        errors = f"{table['reached'].mean():.4g} to **{table['reached_after'].mean():.4g}**"
        assert f"mean absolute error from {errors}" in texts_of(test)
        assert len(test.button_group(key="action").options) == 2
    else:
        assert sentence(table, key="preview.sentence@sample") in texts_of(test)
    assert table["rise"].abs().max() > 0


def test_the_kernel_of_one_logit_is_said_not_to_be_enough(
    points: tuple[Workspace, Callable[..., Run]], monkeypatch: pytest.MonkeyPatch
) -> None:
    place, run_of = points
    run = run_of("kind", {"kind": "classification", "kernel": "label_logit"}, 3)
    test = viewer(place.root, monkeypatch)("threshold", run=run.id, m=1)
    assert plain("is not enough to replay a training") in texts_of(test)
    assert "To first order instead" in texts_of(test)
