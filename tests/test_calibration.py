"""Errors planted on purpose: what is changed, what each score finds of them, and what may be recommended."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import lab
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import texts_of
from hypothesis import given, settings
from hypothesis import strategies as st
from test_pages import viewer

from pages.shared import calibrating
from pages.shared.i18n import LANGUAGES, texts
from tracin_core.data.files import read_json, write_json
from tracin_core.data.samples import all_pairs, with_labels
from tracin_core.engine.models import build_model
from tracin_core.engine.objectives import training_pairs, turned
from tracin_core.engine.training import train
from tracin_core.errors import ExclusionError, InputError, UnknownSampleError
from tracin_core.notebook import TracIn
from tracin_core.recipe import ClassificationTask, RankingTask, Recipe, RegressionTask, TaskSection
from tracin_core.records.calibrations import (
    Calibration,
    calibrations,
    folder_of,
    found_by_share,
    name_of,
    plant,
    recommended_score,
    start_calibration,
)
from tracin_core.records.runs import Run
from tracin_core.records.workspace import Workspace, open_workspace
from tracin_core.scores.methods import METHODS, random_scores

TASKS: dict[str, TaskSection] = {"kind": ClassificationTask(), "order": RankingTask(), "number": RegressionTask()}
POINTS = 90
SETTINGS: dict[str, dict[str, Any]] = {
    "kind": {"epochs": 6, "save_epochs": (1, 3, 6), "learning_rate": 0.05, "batch_size": 4},
    "order": {"epochs": 3, "save_epochs": (1, 3), "learning_rate": 0.05},
    "number": {"epochs": 6, "save_epochs": (1, 3, 6), "learning_rate": 0.01, "batch_size": 8},
}
SHARE, SEEDS = 0.1, 2


def write_points(file: Path) -> Path:
    """Three classes of points that lie well apart, an order, and a number that depends on where they lie."""
    generator = np.random.default_rng(5)
    labels = np.arange(POINTS) % 3
    x = 0.5 * generator.normal(size=(POINTS, 4)) + 3 * np.eye(3, 4)[labels]
    number = x @ np.array([1.0, -1.0, 0.5, 0.0])
    ids = np.array([f"point_{row:02d}" for row in range(POINTS)])
    np.savez(file, x=x.astype(np.float32), kind=labels, number=number / number.std(), order=labels * 10, id=ids)
    return file


def table_of(target: str) -> pd.DataFrame:
    """The samples of those points, as a worker reads them, most of them on the training side."""
    labels = np.arange(POINTS) % 3
    values = {"kind": labels, "order": labels * 10, "number": np.random.default_rng(1).normal(size=POINTS)}[target]
    samples = pd.DataFrame({"id": [f"point_{row:02d}" for row in range(POINTS)], "target": values, "room": labels})
    return with_labels(samples.assign(split=np.where(np.arange(POINTS) % 5 == 4, "validation", "train")), TASKS[target])


# ---- what is planted ------------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(target=st.sampled_from(list(TASKS)), share=st.floats(0.03, 0.25), seed=st.integers(0, 1000))
def test_planted_labels_are_the_only_difference(target: str, share: float, seed: int) -> None:
    """Row by row: what the truth names differs as it says, in every column of labels alike; all else is as it was."""
    samples = table_of(target)
    before = samples.copy()
    found = plant(samples, TASKS[target], "labels", share, seed)
    pd.testing.assert_frame_equal(samples, before)
    told = {error["sample"]: error for error in found.truth}
    trained = int((samples["split"] == "train").sum())
    assert abs(len(told) - share * trained) <= (1 if target == "number" else 0.5)
    of_label = {
        name: dict(zip(samples["target"], samples[name], strict=True))
        for name in samples
        if name in ("label", "angle", "label_name")
    }
    for (_, old), (_, new) in zip(samples.iterrows(), found.samples.iterrows(), strict=True):
        error = told.get(old["id"])
        if error is None:
            assert old.equals(new)
            continue
        assert old["split"] == "train"
        assert (error["was"], error["is"]) == (old["target"], new["target"])
        assert new["target"] != old["target"]
        assert all(new[name] == value[new["target"]] for name, value in of_label.items())
        assert (old["id"], old["room"], old["split"]) == (new["id"], new["room"], new["split"])
    assert (found.samples.dtypes == samples.dtypes).all()
    assert found.flips == frozenset()
    assert found.wrong == set(told)
    again = plant(samples, TASKS[target], "labels", share, seed)
    assert again.truth == found.truth


def test_swapped_targets_are_far_apart_and_none_is_lost() -> None:
    samples = table_of("number")
    found = plant(samples, TASKS["number"], "labels", 0.2, 3)
    trained = (samples["split"] == "train").to_numpy()
    assert sorted(found.samples["target"]) == sorted(samples["target"])
    apart = np.abs(found.samples["target"] - samples["target"])[samples["id"].isin(found.wrong)]
    assert apart.min() > 0.5 * samples["target"][trained].std(ddof=0)


def test_every_other_label_is_drawn_alike() -> None:
    """Over many seeds, each wrong label is as frequent as the other one."""
    samples = table_of("kind")
    drawn = [
        (error["was"], error["is"]) for seed in range(300) for error in plant(samples, TASKS["kind"], "labels", 0.1, seed).truth
    ]
    counts = pd.Series(drawn).value_counts()
    assert set(counts.index) == {(one, two) for one in range(3) for two in range(3) if one != two}
    assert counts.min() > 0.8 * counts.max()


def test_turned_pairs_leave_the_samples_alone() -> None:
    samples = table_of("order")
    found = plant(samples, TASKS["order"], "pair_flips", 0.05, 0)
    pd.testing.assert_frame_equal(found.samples, samples)
    pairs = all_pairs(samples[samples["split"] == "train"].reset_index(drop=True))
    assert len(found.flips) == len(found.truth) == round(0.05 * len(pairs))
    assert found.flips <= {frozenset(ends) for ends in zip(pairs["id1"], pairs["id2"], strict=True)}


def test_too_little_to_plant_is_refused() -> None:
    with pytest.raises(InputError, match="is 1 errors"):
        plant(table_of("kind"), TASKS["kind"], "labels", 0.01, 0)
    level = table_of("number").assign(target=1.0)
    with pytest.raises(InputError, match="only 0 can be swapped"):
        plant(level, TASKS["number"], "labels", 0.1, 0)


# ---- learning pairs the wrong way round -----------------------------------------------------------------------------------------


def test_only_the_turned_pairs_have_another_target() -> None:
    samples = table_of("order")
    rows = np.flatnonzero(samples["split"] == "train")
    pairs, flips = training_pairs(samples, rows), plant(samples, TASKS["order"], "pair_flips", 0.1, 1).flips
    new = turned(pairs, samples, flips)
    ids = samples["id"].to_numpy()
    for first, second, old, now in zip(pairs["first"], pairs["second"], pairs["target"], new["target"], strict=True):
        assert now == (-old if frozenset((ids[first], ids[second])) in flips else old)
    held_out = frozenset(samples["id"][samples["split"] != "train"].iloc[:2])
    with pytest.raises(UnknownSampleError, match="no training pair"):
        turned(pairs, samples, {held_out})


def test_all_pairs_turned_round_are_the_reverse_order(tmp_path: Path) -> None:
    """Learning every pair the wrong way round is learning from reversed labels, to the last bit."""
    samples, inputs = table_of("order"), np.random.default_rng(0).normal(size=(POINTS, 4)).astype(np.float32)
    model = Recipe.from_dict(
        {
            "model": {"kind": "mlp", "inputs": 4, "hidden": [5]},
            "data": {"kind": "arrays", "file": tmp_path / "a.npz"},
            "checkpoints": {"folder": tmp_path},
        }
    ).model
    shared: dict[str, Any] = {"model": model, "task": TASKS["order"], "epochs": 2, "keep": "outputs"}
    pairs = all_pairs(samples[samples["split"] == "train"].reset_index(drop=True))
    train(
        inputs,
        samples,
        tmp_path / "turned",
        flip_pairs={frozenset(ends) for ends in zip(pairs["id1"], pairs["id2"], strict=True)},
        **shared,
    )
    reverse = samples.assign(label=2 - samples["label"], angle=20 - samples["angle"])
    train(inputs, reverse, tmp_path / "reverse", **shared)
    outputs = [np.load(tmp_path / name / "outputs.npy") for name in ("turned", "reverse")]
    np.testing.assert_array_equal(*outputs)
    with pytest.raises(ExclusionError, match="to be excluded or turned"):
        train(
            inputs,
            table_of("kind"),
            tmp_path / "kind",
            flip_pairs={frozenset("ab")},
            **{**shared, "task": TASKS["kind"], "model": model.model_copy(update={"outputs": 3})},
        )


# ---- from the question to the answer ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    made = open_workspace(tmp_path_factory.mktemp("studio"))
    yield made
    lab.stop_worker(made)


@pytest.fixture(scope="module")
def runs(place: Workspace, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """A run of each task on the same points."""
    file = write_points(tmp_path_factory.mktemp("points") / "points.npz")
    tasks: dict[str, tuple[dict[str, Any], int]] = {
        "kind": ({"kind": "classification"}, 3),
        "order": ({"kind": "ranking", "loss": "logistic", "margin": 0.0}, 1),
        "number": ({"kind": "regression"}, 1),
    }
    found = {}
    for target, (task, outputs) in tasks.items():
        folder = place.root / "trainings" / target
        recipe = lab.arrays_recipe(file, folder, target, task, outputs)
        place.queue.wait(place.start_training(recipe, settings=SETTINGS[target], folder=folder).id)
        made = place.compute(recipe)
        assert isinstance(made, Run)
        found[target] = made
    return found


ASKED = {"kind": "labels", "order": "pair_flips", "number": "labels"}


@pytest.fixture(scope="module")
def found(place: Workspace, runs: dict[str, Run]) -> dict[str, Calibration]:
    """A finished calibration of each run."""
    answers = {}
    for target, run in runs.items():
        noise: Any = ASKED[target]
        before = {path: path.read_bytes() for path in (place.root / "runs" / run.id).iterdir()}
        job = place.queue.wait(start_calibration(place, run, noise=noise, share=SHARE, seeds=SEEDS).id)
        assert job.state == "done", job.error
        assert {path: path.read_bytes() for path in (place.root / "runs" / run.id).iterdir()} == before
        (answers[target],) = calibrations(place, run)
    return answers


@pytest.mark.parametrize("target", TASKS)
def test_every_method_is_judged_or_says_why_not(found: dict[str, Calibration], target: str) -> None:
    answer = found[target]
    told = [*answer.scores, *answer.missing]
    assert len(told) == len(set(told))
    asked = {(kind, name) for name, entry in METHODS.items() for kind in ("self_influence", "influence") if kind in entry.defines}
    named = {name_of(score) for score in told} - {("worst_influence", "tracin")}
    baselines = {name for name, entry in METHODS.items() if "influence" not in entry.defines}
    expected = {
        ("", name) if name in baselines else (kind.replace("influence", "mean_influence") if kind == "influence" else kind, name)
        for kind, name in asked
    }
    assert named == expected
    assert {"random", "last_loss", "mean_loss", "self_influence", "self_influence.last_checkpoint"} <= set(answer.scores)
    assert all(answer.missing.values())


@pytest.mark.parametrize("target", TASKS)
def test_the_figures_are_those_of_the_scores_that_are_kept(place: Workspace, found: dict[str, Calibration], target: str) -> None:
    """AUROC by counting every pair, average precision by walking down the list, recovery as the mean of many shuffled lists."""
    answer = found[target]
    generator = np.random.default_rng(0)
    for seed in answer.seeds:
        kept = pd.read_csv(folder_of(place) / answer.number / f"seed-{seed}.csv")
        wrong = kept["planted"].to_numpy()
        named = {error.get("sample") or frozenset((error["id1"], error["id2"])) for error in answer.planted[str(seed)]}
        assert wrong.sum() == len(named) == round(SHARE * len(kept))
        if answer.unit == "sample":
            assert set(kept["id"][wrong]) == named
        for score in set(answer.scores) - {"random"}:
            values = kept[score].to_numpy()
            row = answer.table.query("seed == @seed and score == @score").iloc[0]
            bad, good = values[wrong][:, None], values[~wrong][None, :]
            assert row["auroc"] == pytest.approx(np.mean((bad > good) + 0.5 * (bad == good)))
            levels = np.unique(values)[::-1]
            parts = [(wrong[values == level].sum(), wrong[values >= level].mean()) for level in levels]
            assert row["average_precision"] == pytest.approx(sum(count * precision for count, precision in parts) / wrong.sum())
            looked = int(np.ceil(0.2 * len(values) - 1e-9))
            shuffled = [wrong[np.lexsort((generator.random(len(values)), -values))][:looked].sum() for _ in range(40)]
            assert row["recovery_20"] == pytest.approx(np.mean(shuffled) / wrong.sum(), abs=0.2 if row["ties"] else 1e-9)
        counted = [random_scores(len(kept), 20 * seed + draw) for draw in range(20)]
        expected = np.mean([np.mean(values[wrong][:, None] > values[~wrong][None, :]) for values in counted])
        assert answer.table.query("seed == @seed and score == 'random'")["auroc"].iloc[0] == pytest.approx(expected)


def test_curves_pass_through_the_figures_and_end_at_all_of_them(place: Workspace, found: dict[str, Calibration]) -> None:
    answer = found["kind"]
    scores = [score for score in answer.scores if score != "random"]
    curves = found_by_share(place, answer, scores, [0.1, 0.2, 0.3, 1.0])
    for score in scores:
        told = [answer.figure(score, f"recovery_{share}").mean for share in (10, 20, 30)]
        np.testing.assert_allclose(curves[score], [*told, 1.0], err_msg=score)
    lost = replace(answer, number="0" * 16)
    with pytest.raises(InputError, match=r"seed-1\.csv.*calibrate again"):
        found_by_share(place, lost, scores, [0.1])


@pytest.mark.parametrize("target", ["kind", "number"])
def test_the_scores_are_those_of_a_training_on_the_planted_labels(
    place: Workspace, runs: dict[str, Run], found: dict[str, Calibration], tmp_path: Path, target: str
) -> None:
    """The same training again, its checkpoints asked in a notebook."""
    run, answer = runs[target], found[target]
    samples = plant(run.samples, run.recipe.task, "labels", SHARE, 1).samples
    with np.load(run.recipe.data.place) as arrays:
        known = {name: row for row, name in enumerate(arrays["id"])}
        inputs = arrays["x"][[known[name] for name in samples["id"]]]
    shared: dict[str, Any] = {"model": run.recipe.model, "task": run.recipe.task, "plugins": place.root / "plugins"}
    train(
        inputs, samples, tmp_path, **shared, **{**answer.settings, "save_epochs": tuple(answer.settings["save_epochs"]), "seed": 1}
    )
    states = [torch.load(tmp_path / f"model_epoch_{epoch}.pt", weights_only=True) for epoch in (1, 3, 6)]
    column = "label" if target == "kind" else "target"
    sides = [(samples["split"] == side).to_numpy() for side in ("train", "validation")]
    data = [(inputs[side], samples[column].to_numpy()[side], samples["id"].to_numpy()[side]) for side in sides]
    model = build_model(run.recipe.model, place.root / "plugins")
    tracin = TracIn(model, states, *data, loss=run.loss.name, weights="uniform", progress=False)
    kept = pd.read_csv(folder_of(place) / answer.number / "seed-1.csv").set_index("id")
    view = tracin.view()
    expected = {
        "self_influence": tracin.self_influence(),
        "mean_influence": -view.mean_influence(),
        "worst_influence": -view.worst_influence(),
        "mean_loss": view.train.losses.mean(axis=0),
    }
    ours = kept.loc[view.train.table["id"]]
    for score, values in expected.items():
        np.testing.assert_allclose(ours[score], values, rtol=1e-4, atol=1e-6)


def test_planted_labels_are_found_on_points_that_lie_well_apart(found: dict[str, Calibration]) -> None:
    table = found["kind"].summary().set_index("score")
    assert table.loc["mean_loss", "auroc"] > 0.95
    assert 0.3 < table.loc["random", "auroc"] < 0.7


def test_asked_again_only_what_is_lost_is_done_again(place: Workspace, runs: dict[str, Run], found: dict[str, Calibration]) -> None:
    """A worker that died during the second seed: the first one's result stands, and the answer is the same."""
    answer = found["kind"]
    folder = folder_of(place) / answer.number
    assert not list(folder.rglob("*.pt"))
    (folder / "result.json").unlink()
    (folder / "seed-2.json").unlink()
    before = (folder / "seed-1.json").stat().st_mtime_ns
    assert calibrations(place, runs["kind"]) == []
    place.queue.wait(start_calibration(place, runs["kind"], share=SHARE, seeds=SEEDS).id)
    (again,) = calibrations(place, runs["kind"])
    assert (folder / "seed-1.json").stat().st_mtime_ns == before
    pd.testing.assert_frame_equal(again.table, answer.table)
    assert again.planted == answer.planted


def test_questions_without_an_answer_are_refused(place: Workspace, runs: dict[str, Run]) -> None:
    jobs = len(place.jobs(200))
    for asked, told in (
        ({"seeds": 1}, "make no interval"),
        ({"share": 0.5}, "at most 0.25"),
        ({"noise": "pair_flips"}, "classification"),
    ):
        with pytest.raises(InputError, match=told):
            start_calibration(place, runs["kind"], **asked)  # type: ignore[arg-type]
    assert len(place.jobs(200)) == jobs


# ---- what is recommended ----------------------------------------------------------------------------------------------------------


def finished(figures: dict[str, list[tuple[float, float]]], **changes: Any) -> Calibration:
    """A calibration in which each score had this (AUROC, average precision) with each seed."""
    rest = {"recovery_10": 0.5, "recovery_20": 0.5, "recovery_30": 0.5, "ties": 0.0, "zeros": 0.0}
    rows = [
        {"seed": seed, "score": score, "auroc": auroc, "average_precision": precision, **rest}
        for score, values in figures.items()
        for seed, (auroc, precision) in enumerate(values, start=1)
    ]
    seeds = max(len(values) for values in figures.values())
    trainings = pd.DataFrame(
        [{"seed": seed, "examples": 50, "wrong": 5, "validation_accuracy": 0.9} for seed in range(1, seeds + 1)]
    )
    told = {"run_id": "r", "digest": "d", "subject": "s", "noise": "labels", "share": 0.1, "unit": "sample", "simulated": False}
    told |= {"settings": {}, "assumed": (), "created": 1.0, "who": "", "missing": {}, "planted": {}, **changes}
    return Calibration(number=told.pop("number", "c"), table=pd.DataFrame(rows), trainings=trainings, **told)


CHANCE = [(0.5, 0.10), (0.5, 0.11), (0.5, 0.12)]
GOOD = [(0.95, 0.80), (0.96, 0.82), (0.94, 0.81)]


@pytest.mark.parametrize(
    ("figures", "score", "best"),
    [
        (
            {"self_influence.trak": [(0.9, 0.90), (0.9, 0.91), (0.9, 0.92)], "mean_loss": GOOD},
            "self_influence.trak",
            "self_influence.trak",
        ),
        ({"self_influence.trak": [(0.9, 0.83), (0.9, 0.81), (0.9, 0.83)], "mean_loss": GOOD}, "mean_loss", "self_influence.trak"),
        ({"self_influence": [(0.9, 0.83), (0.9, 0.81), (0.9, 0.83)], "mean_loss": GOOD}, "mean_loss", "self_influence"),
        ({"self_influence": GOOD, "mean_loss": CHANCE}, "self_influence", "self_influence"),
        ({"self_influence": [(0.62, 0.5), (0.58, 0.5), (0.61, 0.5)]}, None, None),  # the AUROC's interval reaches below .6
        ({"self_influence": [(0.9, 0.9), (0.9, 0.1), (0.9, 0.1)]}, None, None),  # not above chance by more than the interval
        (
            {"mean_loss": GOOD[:2], "self_influence": GOOD},
            "self_influence",
            "self_influence",
        ),  # judged with two seeds of three only
        ({}, None, None),
    ],
)
def test_what_is_recommended(figures: dict[str, list[tuple[float, float]]], score: str | None, best: str | None) -> None:
    told = finished({**figures, "random": CHANCE}).recommendation()
    assert (told.score, told.best) == (score, best)


def test_the_summary_has_the_intervals_of_its_seeds() -> None:
    row = finished({"mean_loss": GOOD, "random": CHANCE}).summary().set_index("score").loc["mean_loss"]
    half = 4.302652729911275 * 0.01 / np.sqrt(3)  # t of two degrees of freedom, sd .01
    assert (row["average_precision"], row["average_precision_low"]) == pytest.approx((0.81, 0.81 - half))
    assert row["above_random"] == pytest.approx(0.81 - 0.11)


def test_a_recommendation_is_about_data_model_and_task(
    place: Workspace, runs: dict[str, Run], found: dict[str, Calibration]
) -> None:
    """Another run of other checkpoints of the same training shares it; a run of another task does not."""
    run = runs["kind"]
    part = Recipe.from_dict({**run.recipe.to_dict(), "checkpoints": {"folder": run.recipe.checkpoints.folder, "epochs": [0, 1, 3]}})
    other = place.compute(part)
    assert isinstance(other, Run)
    assert other.digest != run.digest
    told = keep(place, finished({"mean_influence": GOOD, "random": CHANCE}, subject=found["kind"].subject, created=9e9))
    assert recommended_score(place, run) == recommended_score(place, other) == "mean_influence"
    assert "c" not in [one.number for one in calibrations(place, runs["order"])]
    told.unlink()


def keep(place: Workspace, answer: Calibration) -> Path:
    file = folder_of(place) / answer.number / "result.json"
    plain = answer.to_dict()
    write_json(file, {name: plain[name] for name in answer.__dataclass_fields__ if name != "number"})
    assert read_json(file)["subject"] == answer.subject
    return file


# ---- the pages --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_page_tells_which_score_to_look_at(
    place: Workspace, runs: dict[str, Run], found: dict[str, Calibration], monkeypatch: pytest.MonkeyPatch, language: str
) -> None:
    look, known, answer = viewer(place.root, monkeypatch), texts(language), found["kind"]
    test = look("calibrate", lang=language, run=runs["kind"].id)
    assert not test.exception
    assert not test.error
    assert known["calibrate.count"].format(n=3) in texts_of(test)
    (table,) = (frame.value for frame in test.dataframe)
    assert len(table) == len(answer.scores)
    assert table.columns[:2].tolist() == ["score", "reliable"]  # what a reader needs first is not cut off at the right
    best = answer.summary().iloc[0]
    told = f"{best['average_precision']:.3f} ({best['average_precision_low']:.3f} – {best['average_precision_high']:.3f})"
    assert table["average_precision"].iloc[0] == told
    shown = [*test.success, *test.warning]
    expected = answer.recommendation()
    assert len(shown) == 1
    assert (shown[0] in list(test.success)) == (expected.score is not None)


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_recommended_score_comes_first_on_other_pages(
    place: Workspace, runs: dict[str, Run], found: dict[str, Calibration], monkeypatch: pytest.MonkeyPatch, language: str
) -> None:
    """It is the default and marked, and the address holds its plain name; a link that says otherwise goes on meaning what it says."""
    look, known, run = viewer(place.root, monkeypatch), texts(language), runs["kind"]
    file = keep(place, finished({"mean_influence": GOOD, "random": CHANCE}, subject=found["kind"].subject, created=9e9))
    badge = known["recommended.badge"].format(score=known["score.mean_influence"])
    for page in ("overview", "distribution", "calibrate"):
        assert badge in texts_of(look(page, lang=language, run=run.id))
    test = look("distribution", lang=language, run=run.id)
    assert test.button_group(key="score").value == "mean_influence"
    assert test.query_params["score"] in ("mean_influence", ["mean_influence"])
    assert f"{known['score.mean_influence']} · {known['recommended']}" in [
        str(option) for option in test.button_group(key="score").options
    ]
    assert (
        look("distribution", lang=language, run=run.id, score="self_influence").button_group(key="score").value == "self_influence"
    )
    assert look("calibrate", lang=language, run=run.id).warning[0].value == known["calibrate.stale"].format(run="r")
    file.unlink()


def test_the_button_asks_and_a_failure_is_told(place: Workspace, runs: dict[str, Run], monkeypatch: pytest.MonkeyPatch) -> None:
    """On data that were changed since: the job says so, and the page shows it."""
    look, run = viewer(place.root, monkeypatch), runs["number"]
    test = look("calibrate", run=run.id, planted="5", seeds=2)
    data = run.recipe.data.place
    kept = data.read_bytes()
    with np.load(data) as arrays:
        changed = dict(arrays)
    changed["x"][0] += 1
    np.savez(data, **changed)
    test.button(key="start_calibration").click().run()
    assert not test.exception
    (job,) = (job for job in place.jobs(200) if job.kind == "calibration" and job.request["share"] == 0.05)
    with pytest.raises(Exception, match="not as they were"):
        place.queue.wait(job.id)
    assert "not as they were" in look("calibrate", run=run.id).error[0].value.replace("\\", "")
    data.write_bytes(kept)


def test_an_estimate_by_a_training_says_what_it_leaves_out(
    place: Workspace, runs: dict[str, Run], found: dict[str, Calibration], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only an earlier calibration tells how long one takes: its kernels and scores are no part of a training."""
    run, look, known = runs["kind"], viewer(place.root, monkeypatch), texts("en")
    epochs = [0, int(run.checkpoints["epoch"].iloc[-1])]
    part = Recipe.from_dict({**run.recipe.to_dict(), "checkpoints": {"folder": run.recipe.checkpoints.folder, "epochs": epochs}})
    other = place.compute(part)
    assert isinstance(other, Run)
    only_trained, calibrated = (known[f"calibrate.{name}"].split("{")[1].split("}")[1] for name in ("at_least", "estimate"))
    told = run.recipe.checkpoints.folder / "training.json"
    kept = told.read_bytes()
    write_json(told, {**read_json(told), "seconds": 1_800.0})
    try:
        words = texts_of(look("calibrate", run=other.id, seeds=2))
    finally:
        told.write_bytes(kept)
    assert known["calibrate.at_least"].format(duration="1 h 0 min") in words
    assert calibrated in texts_of(look("calibrate", run=run.id))
    assert only_trained not in texts_of(look("calibrate", run=run.id))


def test_of_divided_gradients_it_is_said_beforehand_that_plain_ones_are_calibrated(
    place: Workspace, runs: dict[str, Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    look, settings = viewer(place.root, monkeypatch), runs["number"].recipe.to_dict()
    run = place.compute(Recipe.from_dict({**settings, "engine": {**settings["engine"], "precondition": "ekfac"}}))
    assert isinstance(run, Run)
    for one, told in ((run, True), (runs["number"], False)):
        assert (texts("en")["calibrate.plain"] in [info.value for info in look("calibrate", run=one.id).info]) == told


def test_that_nothing_is_reliable_says_more_where_two_seeds_could_not_tell() -> None:
    poor = [(0.62, 0.5), (0.58, 0.1), (0.61, 0.3)]
    for seeds, few in ((2, True), (3, False)):
        answer = finished({"self_influence": poor[:seeds], "random": CHANCE[:seeds]})
        assert answer.recommendation().score is None
        assert (texts("en")["calibrate.verdict.few"] in calibrating.sentence(answer)) == few


def test_no_interval_that_is_told_leaves_what_a_share_can_be() -> None:
    """As in the table: few seeds know nothing of 0 and 1."""
    answer = finished({"mean_loss": [(0.95, 0.99), (0.96, 0.7), (0.97, 0.95)], "random": CHANCE})
    assert answer.recommendation().score == "mean_loss"
    assert answer.figure("mean_loss", "average_precision").high > 1
    row = answer.summary().set_index("score").loc["mean_loss"]
    low, high = (f"{row[f'average_precision_{end}']:.2f}" for end in ("low", "high"))
    assert high == "1.00"
    assert f"95% interval {low} to {high}" in calibrating.sentence(answer)


def test_what_is_downloaded_holds_the_truth(found: dict[str, Calibration]) -> None:
    told = json.loads(json.dumps(found["order"].to_dict(), default=str))
    assert len(told["planted"]["1"]) == found["order"].trainings["wrong"].iloc[0]
    assert {row["score"] for row in told["summary"]} == set(found["order"].scores)
    assert replace(found["order"]).unit == "pair"
