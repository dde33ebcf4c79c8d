"""A list put to the test by retraining: arms, common seeds, equal epochs and steps, and what may be said of it."""

import json
import shutil
from dataclasses import replace
from typing import Any

import lab
import numpy as np
import pandas as pd
import pytest
from conftest import texts_of
from streamlit.testing.v1 import AppTest
from test_pages import viewer

from pages.shared.i18n import LANGUAGES, texts
from pages.shared.session import plain
from tracin_core.data.files import read_json
from tracin_core.data.readers import read_inputs, reader_for
from tracin_core.engine.training import train
from tracin_core.errors import InputError, JobFailedError, ViewError
from tracin_core.evaluating.faithfulness import unit_names
from tracin_core.recipe import Recipe
from tracin_core.records.evaluations import (
    Retraining,
    arms_of,
    require_action,
    retrainings,
    start_retraining,
    with_their_pairs,
)
from tracin_core.records.runs import Run
from tracin_core.records.trainings import left_out_before, settings_of
from tracin_core.records.workspace import Workspace
from tracin_core.scores.actions import Action


@pytest.fixture(scope="module")
def place(studio: lab.Studio) -> Workspace:
    return studio.place


@pytest.fixture(scope="module")
def run(studio: lab.Studio) -> Run:
    return studio.run


RULE = {"threshold": -0.01, "min_occurrences": 1, "max_exclusions": 6, "pair_mode": "ranking_pair"}


def test_arms_are_as_long_as_the_list_and_apart_from_it(run: Run) -> None:
    chosen = run.view().exclusions(**RULE)
    arms = {arm.name: arm.lines for arm in arms_of(run, chosen, draws=2, seed=0)}
    assert list(arms) == ["none", "list", "reverse", "random_1", "random_2"]
    assert arms["none"] == ()
    assert all(len(lines) == len(chosen) for name, lines in arms.items() if name != "none")
    assert not set(arms["reverse"]) & set(arms["list"])
    worth = pd.Series(run.view().mean_influence(), index=run.view().train_pairs["id"])
    others = worth.drop(list(arms["list"]))
    assert min(worth[list(arms["reverse"])]) == others.sort_values().iloc[-len(chosen)]
    assert arms["random_1"] != arms["random_2"]
    assert {arm.lines for arm in arms_of(run, chosen, draws=2, seed=0)} == set(arms.values())


def test_a_list_of_samples_has_arms_of_samples(run: Run) -> None:
    view = run.view()
    chosen = view.exclusions(**{**RULE, "pair_mode": "sample", "max_exclusions": 2})
    arms = {arm.name: arm.lines for arm in arms_of(run, chosen, draws=1, seed=0)}
    worth = {
        name: view.mean_influence()[(view.train_pairs[["id1", "id2"]] == name).any(axis=1)].sum()
        for name in view.train_samples["id"]
    }
    best = [name for name in sorted(worth, key=lambda name: -worth[name]) if name not in set(chosen["id"])]
    assert set(arms["reverse"]) == set(best[: len(chosen)])


def test_lists_that_cannot_be_compared_are_refused(run: Run, place: Workspace) -> None:
    chosen = run.view().exclusions(**RULE)
    with pytest.raises(ViewError, match="0 examples"):
        arms_of(run, chosen.head(0), draws=1, seed=0)
    with pytest.raises(ViewError, match="too few to compare"):
        arms_of(run, run.view().train_pairs, draws=1, seed=0)
    with pytest.raises(InputError, match="at least 2 seeds"):
        start_retraining(place, run, chosen, rule=RULE, seeds=1)


def test_a_list_is_retrained_against_its_controls(run: Run, place: Workspace) -> None:
    chosen = run.view().exclusions(**RULE)
    job = place.queue.wait(start_retraining(place, run, chosen, rule=RULE, seeds=2, draws=2).id)
    assert job.state == "done", job.error
    (found,) = retrainings(place, run)
    table = found.table
    assert (found.entries, found.noun, found.measure, found.rule) == (len(chosen), "pair", "accuracy", RULE)
    counts = table.groupby(["lasting", "arm"]).size()
    assert set(counts) == {2}
    assert set(counts.index.get_level_values("arm")) == {"none", "list", "reverse", "random_1", "random_2"}
    whole = table[table["arm"] == "none"]
    assert set(table.loc[table["arm"] != "none", "examples"]) == {int(whole["examples"].iloc[0]) - len(chosen)}
    assert set(table.loc[table["lasting"] == "epochs", "epochs"]) == set(whole["epochs"])
    told = found.effects().set_index(["lasting", "arm", "against"])
    rows = table[table["lasting"] == "epochs"]
    listed = rows[rows["arm"] == "list"].set_index("seed")["score"]
    random = rows[rows["arm"].str.startswith("random")].groupby("seed")["score"].mean()
    assert told.loc[("epochs", "list", "random"), "difference"] == pytest.approx((listed - random).mean())
    # the same training again, by hand, has the same score
    folder = place.root / "evaluations" / found.number / "epochs-list-1"
    kept = read_json(folder / "training.json")
    assert kept["settings"]["seed"] == 1
    assert kept["exclusions"]["pairs"] == len(chosen)
    assert np.load(folder / "outputs.npy").shape[0] == sum(kept["split"].values())
    assert not list(folder.glob("*.pt"))


def test_equal_steps_alone_can_be_asked_for(run: Run, place: Workspace) -> None:
    """The training without a list says how many steps there are; its result names the list and has the validation side's figures."""
    chosen = run.view().exclusions(**RULE)
    asked: dict[str, Any] = {"rule": {"file": "steps"}, "seeds": 2, "draws": 1, "lasting": ("steps",)}
    job = place.queue.wait(start_retraining(place, run, chosen, **asked).id)
    assert job.state == "done", job.error
    found = next(one for one in retrainings(place, run) if one.rule == asked["rule"])
    assert (found.lasting, found.lines) == (["steps"], tuple(chosen["id"]))
    for name, told in (("validation_loss", "validation_loss"), ("validation_score", "validation_accuracy")):
        last = {
            arm: [
                read_json(place.root / "evaluations" / found.number / f"steps-{arm}-{seed}" / "training.json")["history"][-1][told]
                for seed in (1, 2)
            ]
            for arm in ("list", "none")
        }
        moved = found.moved(name)  # type: ignore[arg-type]
        assert moved is not None
        assert moved.difference.mean == pytest.approx(np.mean(last["list"]) - np.mean(last["none"]), abs=1e-9)
    both = pd.DataFrame(
        [
            {"lasting": lasting, "arm": arm, "seed": seed, "validation_loss": loss}
            for lasting, arm, loss in (("steps", "none", 1.0), ("steps", "list", 3.0), ("epochs", "list", 7.0))
            for seed in (1, 2)
        ]
    )
    moved = replace(found, table=both).moved("validation_loss")
    assert moved is not None
    assert moved.difference.mean == 2.0  # in whichever order they were asked for
    assert finished({"none": [1.0, 1.0], "list": [1.0, 2.0]}).moved("validation_loss") is None
    shutil.rmtree(place.root / "evaluations" / found.number)


def test_asked_again_nothing_is_trained_again(run: Run, place: Workspace) -> None:
    chosen = run.view().exclusions(**RULE)
    before = {file: file.stat().st_mtime_ns for file in (place.root / "evaluations").rglob("training.json")}
    place.queue.wait(start_retraining(place, run, chosen, rule=RULE, seeds=2, draws=2).id)
    assert {file: file.stat().st_mtime_ns for file in (place.root / "evaluations").rglob("training.json")} == before
    assert len(retrainings(place, run)) == 1


@pytest.mark.parametrize(("action", "mode"), [("down_weight", "ranking_pair"), ("down_weight", "sample"), ("turn", "ranking_pair")])
def test_a_list_is_changed_in_place_of_left_out(run: Run, place: Workspace, action: Action, mode: Any) -> None:
    """The same training by hand; every example stays, and the controls have as many changed."""
    chosen = run.view().exclusions(**{**RULE, "pair_mode": mode, "max_exclusions": 3})
    asked = {"rule": {"file": f"{action}.{mode}"}, "seeds": 2, "draws": 1, "action": action, "weight": 0.1}
    place.queue.wait(start_retraining(place, run, chosen, **asked).id)
    found = next(one for one in retrainings(place, run) if one.rule == asked["rule"])
    assert (found.action, found.weight, found.lasting) == (action, 0.1 if action == "down_weight" else None, ["epochs"])
    assert set(found.table["examples"]) == {len(run.train_pairs)}
    folder = place.root / "evaluations" / found.number
    names = [frozenset((pair.id1, pair.id2)) for pair in chosen.itertuples()] if mode == "ranking_pair" else chosen["id"].tolist()
    change: dict[str, Any] = {"flip_pairs": set(names)} if action == "turn" else {"weights": dict.fromkeys(names, 0.1)}
    settings = read_json(folder / "epochs-list-1" / "training.json")["settings"]
    own = {name: settings[name] for name in settings_of(run)[0]}
    again = folder.with_name(f"by_hand_{action}_{mode}")
    inputs = read_inputs(run.recipe.data.place, run.samples)
    train(
        inputs, run.samples, again, model=run.recipe.model, task=run.recipe.task, keep="outputs",
        **change, **{**own, "seed": 1, "save_epochs": (own["epochs"],)},
    )  # fmt: skip
    outputs = [np.load(place_of / "outputs.npy") for place_of in (again, folder / "epochs-list-1", folder / "epochs-none-1")]
    rounding = np.abs(outputs[0] - outputs[1]).max()  # another number of threads
    assert rounding < 1e-5
    assert np.abs(outputs[1] - outputs[2]).max() > 10 * rounding
    shutil.rmtree(folder)
    shutil.rmtree(again)


def test_arms_are_not_trained_on_data_that_have_changed(run: Run, place: Workspace) -> None:
    """Else some arms would be of the old recordings, found on disk, and some of the new."""
    told = run.recipe.to_dict()
    own = {**told, "data": {**told["data"], "root": str(place.root / "recordings" / "small")}}  # the others are shared by all tests
    run = place.compute(Recipe.from_dict(own))
    data = run.recipe.data
    one, other = (data.place / path for path in reader_for(data).list()["path"].iloc[[0, -1]])
    asked = {"rule": {"file": "changed"}, "seeds": 2, "draws": 1, "lasting": ("epochs",)}
    one.write_bytes(other.read_bytes())
    job = start_retraining(place, run, run.view().exclusions(**RULE), **asked)
    with pytest.raises(JobFailedError, match="not as they were"):
        place.queue.wait(job.id)
    assert not (place.root / "evaluations" / job.request["evaluation"]).exists()


def test_what_cannot_be_changed_so_is_refused(run: Run, place: Workspace) -> None:
    pairs, samples = run.view().exclusions(**RULE), run.view().exclusions(**{**RULE, "pair_mode": "sample", "max_exclusions": 2})
    for chosen, action, weight, told in (
        (pairs, "relabel", 0.5, "exclude, down_weight, turn"),
        (samples, "turn", 0.5, "exclude, down_weight"),
        (pairs, "down_weight", 1.0, "between 0 and 1"),
        (pairs, "down_weight", 0.0, "between 0 and 1"),
    ):
        with pytest.raises(InputError, match=told):
            start_retraining(place, run, chosen, rule=RULE, action=action, weight=weight)  # type: ignore[arg-type]
    require_action(run, "pair", "exclude", 0.0)  # nothing is weighed


def test_settings_are_those_of_the_training_and_what_is_assumed_is_named(run: Run) -> None:
    settings, assumed = settings_of(run)
    assert settings["learning_rate"] == run.training_arguments["learning_rate"]
    assert settings["batch_pairs"] == run.training_arguments["batch_size"]
    assert settings["loss"] == run.loss.name
    assert assumed == []


def test_what_the_runs_own_training_left_out_is_left_out_again(run: Run, place: Workspace) -> None:
    """No arm trains on it, and none is drawn from it."""
    listed = run.train_pairs["id"].tolist()[:5]
    file = place.root / "exports" / "before.txt"
    turned = [f"{two}_{one}" for one, two in run.train_pairs[["id1", "id2"]].head(2).to_numpy()]
    file.write_text("\n".join([*turned, *listed[2:]]))  # a list may name a pair either way round
    folder = place.root / "trainings" / "left_out"
    job = place.start_training(run.recipe, settings={"epochs": 2, "save_epochs": (1, 2)}, folder=folder, exclusions_file=file)
    place.queue.wait(job.id)
    own = place.compute(lab.recipe_for(run.recipe.data.place, folder))
    assert isinstance(own, Run)
    assert left_out_before(own) == set(listed)
    chosen = own.view().exclusions(**RULE)
    chosen = chosen[~chosen["id"].isin(listed)]
    again = own.train_pairs[own.train_pairs["id"].isin(listed)]
    for known in (chosen, pd.concat([chosen, again])):  # what was left out before makes no list longer
        for arm in arms_of(own, known, draws=3, seed=0)[2:]:
            assert not set(arm.lines) & set(listed)
            assert len(arm.lines) == len(chosen)
    with pytest.raises(ViewError, match="left out all 5"):
        arms_of(own, again, draws=3, seed=0)
    place.queue.wait(start_retraining(place, own, chosen, rule=RULE, seeds=2, draws=1, lasting=("epochs",)).id)
    (found,) = retrainings(place, own)
    count = len(own.train_pairs)
    trained = found.table.set_index("arm")["examples"]
    assert set(trained["none"]) == {count - 5}
    assert set(trained["list"]) == {count - 5 - len(chosen)}


def test_pairs_of_a_sample_that_was_left_out_are_drawn_by_nobody(run: Run, place: Workspace) -> None:
    """Neither as controls of a list, nor as what subsets hold: no training sees them."""
    sample = str(run.splits["train"]["id"].iloc[0])
    file, folder = place.root / "exports" / "sample.txt", place.root / "trainings" / "without_a_sample"
    file.write_text(sample)
    job = place.start_training(run.recipe, settings={"epochs": 2, "save_epochs": (1, 2)}, folder=folder, exclusions_file=file)
    place.queue.wait(job.id)
    own = place.compute(lab.recipe_for(run.recipe.data.place, folder))
    assert isinstance(own, Run)
    assert left_out_before(own) == {sample}
    of_sample = set(own.train_pairs["id"][(own.train_pairs[["id1", "id2"]] == sample).any(axis=1)])
    chosen = own.train_pairs[~own.train_pairs["id"].isin(of_sample)]
    most = len(chosen) // 2
    for arm in arms_of(own, chosen.head(most), draws=3, seed=0)[2:]:
        assert len(arm.lines) == most
        assert not set(arm.lines) & of_sample
    with pytest.raises(ViewError, match=f"The list names {most + 1}, and {len(chosen)} examples are trained on"):
        arms_of(own, chosen.head(most + 1), draws=3, seed=0)
    before = with_their_pairs(own, left_out_before(own))
    assert set(unit_names(own.methods(), "pair", before)) == set(chosen["id"])


def finished(scores: dict[str, list[float]], measure: str = "accuracy") -> Retraining:
    rows = [
        {"lasting": "epochs", "arm": arm, "seed": seed, "score": score, "loss": 0.0, "examples": 9, "epochs": 5}
        for arm, values in scores.items()
        for seed, score in enumerate(values)
    ]
    return Retraining("e", "r", "d", {}, 3, "pair", measure, (), 0.0, "", pd.DataFrame(rows))


@pytest.mark.parametrize(
    ("listed", "measure", "told"),
    [
        ([0.91, 0.92, 0.90], "accuracy", "helps"),
        ([0.71, 0.72, 0.70], "accuracy", "harms"),
        ([0.81, 0.70, 0.93], "accuracy", "unproven"),
        ([0.91, 0.92, 0.90], "error", "harms"),
    ],
)
def test_the_verdict_is_against_random_and_needs_its_interval(listed: list[float], measure: str, told: str) -> None:
    arms = {
        "none": [0.8, 0.8, 0.8],
        "list": listed,
        "reverse": [0.7] * 3,
        "random_1": [0.8, 0.81, 0.8],
        "random_2": [0.8, 0.81, 0.79],
    }
    found = finished(arms, measure)
    assert found.verdict("epochs") == told
    effects = found.effects().set_index(["arm", "against"])
    assert effects.loc[("reverse", "none"), "difference"] == pytest.approx(0.1 if measure == "error" else -0.1)


# ---- the page ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_page_starts_it_and_says_what_came_of_it(
    run: Run, place: Workspace, monkeypatch: pytest.MonkeyPatch, language: str
) -> None:
    look = viewer(place.root, monkeypatch)
    chosen = run.view().exclusions(**RULE)
    known = texts(language)
    if place.exported_exclusions(run).empty:
        empty = look("verify", lang=language, run=run.id)
        assert known["verify.no_list"] in [info.value for info in empty.info]
        assert known["verify.to_threshold"] in links_of(empty)
        place.export_exclusions(run, chosen, RULE, who="Mei", why="worst")
    test = look("verify", lang=language, run=run.id, seeds=2, draws=2)
    assert not (test.exception)
    assert not (test.error)
    assert known["verify.count"].format(n=2 * (1 + 2 * 4)) in texts_of(test)
    test.button(key="start_retraining").click().run()
    assert not test.exception
    (job, *_) = (job for job in place.jobs() if job.kind == "retraining")
    place.queue.wait(job.id)
    title = known["job.title.list"].format(name=run.name, n=len(chosen), action=known["verify.action.exclude"])
    jobs = look("compute", lang=language, run=run.id)
    assert f"**{plain(title)}**" in texts_of(jobs)
    assert known["job.result"] in links_of(jobs)
    (found,) = retrainings(place, run)  # the page asks what was asked before: the same evaluation
    test = look("verify", lang=language, run=run.id)
    assert not (test.exception)
    assert not (test.error)
    shown = [*test.success, *test.error, *test.warning]
    assert len(shown) == len(found.lasting)
    effect = found.effect("list", "random", "epochs").difference
    assert f"{100 * effect.mean:+.2f}" in shown[0].value
    assert plain(f"{known['threshold.value']} {RULE['threshold']:.10g}") in texts_of(test)  # which list it was
    assert len(test.dataframe[0].value) == len(found.effects())
    assert known["verify.column.difference.accuracy"] in json.loads(test.dataframe[0].proto.columns)["difference"]["label"]


def test_what_is_under_way_and_what_waits_are_told_apart(run: Run, place: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """And where both can be ended."""
    look, chosen, known = viewer(place.root, monkeypatch), run.view().exclusions(**RULE), texts("en")
    lab.stop_worker(place)
    with place.queue.worker_lock().acquire(timeout=30):  # nobody else takes the jobs
        for draws in (4, 5):
            start_retraining(place, run, chosen, rule=RULE, seeds=2, draws=draws)
        place.queue.claim("this test")
        test = look("verify", run=run.id)
        for job in place.jobs():
            if job.is_live:
                place.cancel(job.id)
    for state in ("job.running", "job.in_line"):
        assert sum(info.value.startswith(known[state].split("{")[0]) for info in test.info) == 1
    assert known["job.all"] in links_of(test)


def links_of(test: AppTest) -> list[str]:
    """What the links to other pages say."""
    return [link.proto.label for link in test.get("page_link")]


def test_a_run_without_a_test_side_says_so(run: Run, place: Workspace) -> None:
    sides = {**run.splits, "test": run.splits["test"].head(0)}
    run.__dict__["splits"] = sides
    try:
        with pytest.raises(InputError, match="no test side"):
            start_retraining(place, run, run.view().exclusions(**RULE), rule=RULE)
    finally:
        del run.__dict__["splits"]
