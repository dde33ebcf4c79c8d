"""Do influences foretell training on subsets? The job's figures against trainings and correlations done by hand."""

import re
import shutil
from typing import Any

import numpy as np
import pytest
import scipy
from conftest import texts_of
from test_calibration import SETTINGS, place, runs
from test_pages import viewer

from pages.shared.i18n import LANGUAGES, texts
from tracin_core.data.files import read_json, write_json
from tracin_core.data.readers import reader_for
from tracin_core.engine.training import train
from tracin_core.errors import InputError
from tracin_core.evaluating.faithfulness import kept_examples, summed, unit_influence, what_stays
from tracin_core.records.faithfulness import FOLDER, Faithfulness, faithfulness, start_lds
from tracin_core.records.runs import Run
from tracin_core.records.workspace import Workspace
from tracin_core.scores.evaluation import half_subsets

TASKS = ("kind", "order", "number")
__all__ = ["place", "runs"]  # fixtures
SUBSETS, REPEATS = 6, 2


@pytest.fixture(scope="module")
def found(place: Workspace, runs: dict[str, Run]) -> dict[str, Faithfulness]:
    """Of each task: finished, by samples."""
    answers = {}
    for target, run in runs.items():
        place.queue.wait(start_lds(place, run, subsets=SUBSETS, repeats=REPEATS).id)
        (answers[target],) = faithfulness(place, run)
    return answers


def subsets_of(run: Run, answer: Faithfulness) -> tuple[list[str], np.ndarray]:
    names = run.splits["train"]["id"].tolist()
    return names, half_subsets(len(names), SUBSETS, seed=int(answer.number, 16))


@pytest.mark.parametrize("target", TASKS)
def test_each_training_leaves_out_what_its_subset_does(
    place: Workspace, runs: dict[str, Run], found: dict[str, Faithfulness], target: str
) -> None:
    """The same training by hand gives the same outputs, for one subset and the second seed."""
    run, answer = runs[target], found[target]
    names, kept = subsets_of(run, answer)
    folder = place.root / FOLDER / answer.number / "003-2"
    told = read_json(folder / "training.json")
    assert (told["settings"]["seed"], told["train_samples"]) == (2, round(len(names) / 2))
    assert len(list((place.root / FOLDER / answer.number).glob("*/training.json"))) == SUBSETS * REPEATS
    samples = run.samples
    x = reader_for(run.recipe.data).read(samples)
    again = folder.with_name("by_hand")
    left_out = {name for name, stays in zip(names, kept[3], strict=True) if not stays}
    settings = {**SETTINGS[target], "seed": 2, "save_epochs": (SETTINGS[target]["epochs"],)}
    train(x, samples, again, model=run.recipe.model, task=run.recipe.task, exclude_samples=left_out, keep="outputs", **settings)
    np.testing.assert_array_equal(np.load(again / "outputs.npy"), np.load(folder / "outputs.npy"))


def losses_by_hand(run: Run, outputs: np.ndarray) -> np.ndarray:
    """The loss of each test, from outputs of all samples."""
    of = {name: row for row, name in enumerate(run.samples["id"])}
    if run.task == "ranking":
        pairs = run.test_pairs
        first, second = (outputs.reshape(-1)[[of[name] for name in pairs[end]]] for end in ("id1", "id2"))
        return np.log1p(np.exp(-pairs["target"].to_numpy() * (first - second)))
    side = run.splits["validation"]
    rows = outputs[[of[name] for name in side["id"]]]
    if run.task == "regression":
        return (rows.reshape(-1) - side["target"].to_numpy()) ** 2
    chances = np.exp(rows - rows.max(1, keepdims=True))
    return -np.log(chances[np.arange(len(rows)), side["label"].to_numpy()] / chances.sum(1))


@pytest.mark.parametrize("target", TASKS)
def test_the_score_is_the_rank_correlation_of_losses_and_sums(
    place: Workspace, runs: dict[str, Run], found: dict[str, Faithfulness], target: str
) -> None:
    run, answer = runs[target], found[target]
    names, kept = subsets_of(run, answer)
    folder = place.root / FOLDER / answer.number
    measured = np.zeros((SUBSETS, len(answer.per_test)))
    for subset in range(SUBSETS):
        for repeat in range(REPEATS):
            outputs = np.load(folder / f"{subset:03d}-{repeat + 1}" / "outputs.npy").astype(float)
            measured[subset] -= losses_by_hand(run, outputs) / REPEATS
    influence = run.view().influence()
    predicted = np.zeros_like(measured)
    for subset in range(SUBSETS):
        stays = {name for name, inside in zip(names, kept[subset], strict=True) if inside}
        for row, example in enumerate(run.view().train_pairs.itertuples()):
            ends = {example.id1, example.id2} if run.noun == "pair" else {example.id}
            if ends <= stays:
                predicted[subset] += influence[row]
    reported = np.sort(np.random.default_rng(int(answer.number, 16)).permutation(SUBSETS)[SUBSETS // 2 :])
    assert answer.reported_on == len(reported)
    for test in range(measured.shape[1]):
        told = answer.per_test["tracin"].astype(float).iloc[test]
        if np.ptp(predicted[reported, test]) == 0:
            assert np.isnan(told)
            continue
        expected = scipy.stats.spearmanr(predicted[reported, test], measured[reported, test]).statistic
        assert told == pytest.approx(expected, abs=1e-9)
    row = answer.methods.set_index("method").loc["tracin"]
    assert row["lds"] == pytest.approx(np.nanmean(answer.per_test["tracin"].astype(float)))
    assert row["low"] <= row["lds"] <= row["high"]


@pytest.mark.parametrize("target", TASKS)
def test_every_method_is_judged_or_says_why_not(found: dict[str, Faithfulness], target: str) -> None:
    answer = found[target]
    judged = set(answer.methods["method"])
    assert {"tracin", "last_checkpoint", "curvature"} <= judged
    assert judged | set(answer.missing) == {"tracin", "last_checkpoint", "training_time", "curvature", "linearised_retraining"}
    assert answer.methods.set_index("method").loc["curvature", "delta"] > 0
    assert answer.ceiling is not None
    assert -1 <= answer.ceiling <= 1


def test_pairs_are_drawn_where_pairs_are_asked_for(place: Workspace, runs: dict[str, Run]) -> None:
    run = runs["order"]
    place.queue.wait(start_lds(place, run, unit="pair", subsets=SUBSETS, repeats=1).id)
    answer = next(one for one in faithfulness(place, run) if one.unit == "pair")
    folder = place.root / FOLDER / answer.number
    told = read_json(folder / "000-1" / "training.json")
    assert told["train_pairs"] == round(len(run.train_pairs) / 2)
    assert told["train_samples"] == len(run.splits["train"])
    assert answer.ceiling is None
    kept = half_subsets(len(run.train_pairs), 3)
    assert (kept_examples(run.methods(), "pair", run.train_pairs["id"].tolist(), kept, set()) == kept).all()


@pytest.mark.parametrize("unit", ["sample", "pair"])
def test_what_is_left_out_is_one_at_a_time_or_groups_of_like_influence_and_of_chance(runs: dict[str, Run], unit: Any) -> None:
    run = runs["order"]
    view = run.view()
    table = view.train_pairs if unit == "pair" else view.train_samples
    names = table["id"].tolist()
    methods = run.methods()
    single = what_stays(methods, {"drawn": "single", "subsets": 7, "unit": unit}, names, 5)
    assert ((~single).sum(axis=1) == 1).all()
    assert len({int(np.flatnonzero(~row)[0]) for row in single}) == 7
    by_hand = []
    for name in names:  # slow and obvious
        ends = [(pair.id,) if unit == "pair" else (pair.id1, pair.id2) for pair in view.train_pairs.itertuples()]
        by_hand.append(sum(view.influence()[row].mean() for row, one in enumerate(ends) if name in one))
    np.testing.assert_allclose(unit_influence(run.methods(), unit, names), by_hand, rtol=1e-9)
    place_of = {int(row): place for place, row in enumerate(np.argsort(by_hand, kind="stable"))}
    for share, count in ((0.05, 9), (0.2, 8), (0.5, 7)):
        asked = {"drawn": "groups", "subsets": count, "share": share, "unit": unit}
        out = [frozenset(np.flatnonzero(~row).tolist()) for row in what_stays(methods, asked, names, 5)]
        assert len(set(out)) == len(out) == count
        assert {len(group) for group in out} == {max(round(share * len(names)), 1)}
        for group in out[: count // 2]:  # neighbours in the order of influence
            places = sorted(place_of[row] for row in group)
            assert places == list(range(places[0], places[0] + len(places)))
    with pytest.raises(InputError, match="4 different subsets"):
        what_stays(methods, {"drawn": "single", "subsets": 40, "unit": unit}, names[:4], 5)


def test_equal_influences_are_equal_predictions(runs: dict[str, Run]) -> None:
    """What is left out is summed, not what stays: otherwise the last digit would rank them."""
    methods = runs["kind"].methods()
    influence = methods.view.influence()
    predicted = summed(methods, "tracin", ~np.eye(len(influence), dtype=bool))
    np.testing.assert_array_equal(predicted, -influence)


@pytest.mark.parametrize("target", TASKS)
def test_leaving_out_one_at_a_time_is_trained_and_judged(place: Workspace, runs: dict[str, Run], target: str) -> None:
    run = runs[target]
    place.queue.wait(start_lds(place, run, drawn="single", subsets=6, repeats=1).id)
    answer = next(one for one in faithfulness(place, run) if one.drawn == "single")
    assert (answer.subsets, answer.reported_on) == (6, 3)
    folder = place.root / FOLDER / answer.number
    names = run.splits["train"]["id"].tolist()
    kept = what_stays(run.methods(), {"drawn": "single", "subsets": 6, "unit": "sample"}, names, int(answer.number, 16))
    measured = np.array([-losses_by_hand(run, np.load(folder / f"{row:03d}-1" / "outputs.npy").astype(float)) for row in range(6)])
    influence, view = run.view().influence(), run.view()
    lost = np.zeros_like(measured)
    for row, out in enumerate(np.array(names)[np.argmin(kept, axis=1)]):
        for place_of, example in enumerate(view.train_pairs.itertuples()):
            if out in ((example.id1, example.id2) if run.noun == "pair" else (example.id,)):
                lost[row] += influence[place_of]
    reported = np.sort(np.random.default_rng(int(answer.number, 16)).permutation(6)[3:])
    for test in range(measured.shape[1]):
        told = answer.per_test["tracin"].astype(float).iloc[test]
        if np.ptp(lost[reported, test]) == 0:
            assert np.isnan(told)
            continue
        assert told == pytest.approx(scipy.stats.spearmanr(-lost[reported, test], measured[reported, test]).statistic, abs=1e-9)
    assert answer.per_test["tracin"].notna().any()
    shutil.rmtree(folder)  # other tests look for the newest of the run


def test_asked_again_nothing_is_trained_again(place: Workspace, runs: dict[str, Run], found: dict[str, Faithfulness]) -> None:
    folder = place.root / FOLDER / found["kind"].number
    before = {file: file.stat().st_mtime_ns for file in folder.glob("*/training.json")}
    (folder / "result.json").unlink()
    place.queue.wait(start_lds(place, runs["kind"], subsets=SUBSETS, repeats=REPEATS).id)
    (again,) = faithfulness(place, runs["kind"])
    assert {file: file.stat().st_mtime_ns for file in folder.glob("*/training.json")} == before
    assert again.methods.equals(found["kind"].methods)


def test_questions_without_an_answer_are_refused(place: Workspace, runs: dict[str, Run]) -> None:
    jobs = len(place.jobs(200))
    asked: list[tuple[dict[str, Any], str]] = [
        ({"subsets": 5}, "at least 6"), ({"repeats": 0}, "at least 6"), ({"share": 1.0}, "between 0 and 1"),
        ({"unit": "pair"}, "single samples"),
    ]  # fmt: skip
    for settings, told in asked:
        with pytest.raises(InputError, match=re.escape(told)):
            start_lds(place, runs["kind"], **settings)
    assert len(place.jobs(200)) == jobs


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_page_says_what_came_of_it_or_asks(
    place: Workspace, runs: dict[str, Run], found: dict[str, Faithfulness], monkeypatch: pytest.MonkeyPatch, language: str
) -> None:
    look = viewer(place.root, monkeypatch)
    test = look("verify", lang=language, run=runs["number"].id)
    assert not test.exception
    shown = next(table.value for table in test.dataframe if "lds" in table.value)
    assert shown["lds"].tolist() == found["number"].methods["lds"].tolist()
    assert all(text == "–" or float(text) > 0 for text in shown["delta"])  # nobody reads "None"
    stale, file = texts(language)["verify.stale"], place.root / FOLDER / found["number"].number / "result.json"
    assert stale not in texts_of(test)
    whole = file.read_bytes()
    write_json(file, {**read_json(file), "digest": "0" * 64})
    assert stale in texts_of(look("verify", lang=language, run=runs["number"].id))
    file.write_bytes(whole)
    kept = (place.root / FOLDER / found["number"].number / "result.json").rename(place.root / "kept.json")
    try:
        asked = look("verify", lang=language, run=runs["number"].id)
        assert texts(language)["foretold.none"] in texts_of(asked)
    finally:
        kept.rename(place.root / FOLDER / found["number"].number / "result.json")


def test_the_button_asks_what_the_fields_say(
    place: Workspace, runs: dict[str, Run], found: dict[str, Faithfulness], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same question is the same evaluation, whose trainings are there; another one trains."""
    look, run = viewer(place.root, monkeypatch), runs["order"]
    asked = dict(found["order"].to_dict())
    pressed = look("verify", run=run.id, subsets=str(SUBSETS), times=str(REPEATS)).button(key="start_lds").click().run()
    assert not pressed.exception
    job = next(one for one in place.jobs(limit=10) if one.kind == "faithfulness")
    assert place.queue.wait(job.id).state == "done"
    steps = [line.split()[2] for line in place.job_log(job.id)]
    assert [step for step in steps if step in ("subsets:", "judging:")] == ["subsets:", "judging:"]
    assert job.request["evaluation"] == asked["number"]
    alone = look("verify", run=run.id, drawn="single", unit="pair", subsets="7", times="1").button(key="start_lds").click().run()
    assert not alone.exception
    newest = next(one for one in place.jobs(limit=10) if one.kind == "faithfulness")
    told = {name: newest.request[name] for name in ("drawn", "unit", "subsets", "repeats", "share")}
    assert told == {"drawn": "single", "unit": "pair", "subsets": 7, "repeats": 1, "share": 0.0}
    place.queue.wait(newest.id)
