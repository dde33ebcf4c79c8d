"""The page that trains: as a run was, on other data, without a list, by weights; what it reached, and the way to its scores."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lab
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Server, idle, texts_of, visit
from lab import Studio
from playwright.sync_api import Page, expect
from streamlit.testing.v1 import AppTest
from test_pages import viewer

from pages.shared import choosing, computing, trained, training
from pages.shared.i18n import LANGUAGES, texts
from pages.shared.session import plain
from tracin_core.data.files import read_json
from tracin_core.engine.models import build_model
from tracin_core.engine.training import train
from tracin_core.recipe import Recipe
from tracin_core.records.calibrations import calibrations, plant, start_calibration, subject_of
from tracin_core.records.differences import differ_only_in_seed, differences
from tracin_core.records.jobs import Job
from tracin_core.records.runs import Run
from tracin_core.records.trainings import left_out_before, settings_of
from tracin_core.records.workspace import open_workspace
from tracin_core.scores.actions import weights_by
from tracin_core.training_settings import SampleSettings, TrainingSettings
from tracin_core.worker.training import name_after

TASKS = {
    "classification": ("kind", {"kind": "classification", "loss": "focal", "gamma": 1.5}, 3),
    "regression": ("number", {"kind": "regression"}, 1),
    "ranking": ("order", {"kind": "ranking", "loss": "ghm", "margin": 2.0}, 1),
}
SETTINGS: dict[str, Any] = {**lab.SHORT, "momentum": 0.5, "schedule": "constant", "seed": 3}


@pytest.fixture(scope="module")
def studios(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Studio]]:
    """One workspace with a run of each task, whose settings are not the defaults."""
    place = open_workspace(tmp_path_factory.mktemp("trained"))
    file = lab.write_arrays(place.root / "recordings" / "points.npz")
    runs = {}
    for task, (target, section, outputs) in TASKS.items():
        folder = place.root / "trainings" / task
        recipe = lab.arrays_recipe(file, folder, target, section, outputs)
        place.queue.wait(place.start_training(recipe, settings=SETTINGS, folder=folder).id)
        run = place.compute(recipe)
        assert isinstance(run, Run)
        runs[task] = Studio(place, run)
    yield runs
    lab.stop_worker(place)


def started(studio: Studio, test: AppTest) -> Job:
    """The training that the page's button starts, when it has ended."""
    before = {job.id for job in studio.place.jobs(100)}
    test.button(key="start_training").click().run()
    assert not test.exception, test.exception
    assert not test.error, test.error
    (job,) = (job for job in studio.place.jobs(100) if job.id not in before)
    assert job.kind == "training"
    return studio.place.queue.wait(job.id)


def weights_in(folder: Path, epoch: int) -> list[torch.Tensor]:
    return list(torch.load(folder / f"model_epoch_{epoch}.pt", weights_only=True)["model_state_dict"].values())


@pytest.mark.parametrize(("task", "language"), list(zip(TASKS, ("en", "zh-TW", "en"), strict=True)))
def test_what_is_offered_is_the_training_that_the_run_had(
    studios: dict[str, Studio], monkeypatch: pytest.MonkeyPatch, task: str, language: str
) -> None:
    """Nothing changed, the same weights come out, to the last bit, at the same epochs."""
    studio, known = studios[task], texts(language)
    test = viewer(studio.place.root, monkeypatch)("train", run=studio.run.id, lang=language)
    assert not test.exception
    assert not test.error
    assert not test.warning
    job = started(studio, test)
    assert job.result is not None
    folder = Path(job.result["folder"])
    own = read_json(studio.run.recipe.checkpoints.folder / "training.json")
    assert job.result["settings"] == own["settings"]
    for epoch in (0, 1, 2):
        pairs = zip(weights_in(folder, epoch), weights_in(studio.run.recipe.checkpoints.folder, epoch), strict=True)
        assert all(torch.equal(here, there) for here, there in pairs)
    test = viewer(studio.place.root, monkeypatch)("train", run=studio.run.id, lang=language)
    shown = texts_of(test)
    assert test.selectbox(key="training").options[0] == known["train.newest"]
    assert known["train.caution"] in shown
    what = "error" if task == "regression" else "accuracy"
    told = own[f"validation_{what}"]
    assert f"{known[f'train.column.validation_{what}']} **{told:.4g}**" in shown or f"**{told:.1%}**" in shown
    table = test.dataframe[0].value
    assert table["name"][0] == known["train.run_in_view"].format(name=task)
    assert table["name"][1] == folder.name
    assert table[f"validation_{what}"][0] == table[f"validation_{what}"][1] == told


@pytest.mark.parametrize("task", TASKS)
def test_a_list_is_left_out_and_a_score_weighs(studios: dict[str, Studio], monkeypatch: pytest.MonkeyPatch, task: str) -> None:
    """What is done without them is analysed at a click, and what its training left out is offered to be left out again."""
    studio, look = studios[task], viewer(studios[task].place.root, monkeypatch)
    place, run = studio.place, studio.run
    chosen = run.view().ranked(run.view().self_influence()).head(2)
    written, _ = place.export_exclusions(run, chosen, {"rule": "suspect"})
    test = look("train", run=run.id, without=written.name, weigh="self_influence")
    weights = weights_by(run.view().self_influence())
    assert texts("en")["train.weigh.words"].format(
        n=int((weights < 1).sum()), total=len(weights), mean=weights.mean(), least=weights.min()
    ) in texts_of(test)
    test.number_input(key=f"epochs.{run.id}").set_value(4)
    test.text_input(key=f"name.{run.id}").set_value("without two: ../../etc")
    job = started(studio, test)
    assert job.result is not None
    told = job.result["exclusions"]
    assert (told["file"], sorted(told["matched"])) == (written.name, sorted(chosen["id"]))
    assert (told["weighted_by"], told["weighting_run"]) == ("self_influence", run.id)
    whole = len(run.splits["train"]) if task != "ranking" else len(run.train_pairs)
    assert job.result["train_pairs" if task == "ranking" else "train_samples"] == whole - 2
    epochs = [entry["epoch"] for entry in job.result["history"]]
    assert epochs == [0, 1, 2, 3, 4]  # not the run's, which ended earlier
    test = look("train", run=run.id, training=job.id)
    shown = texts_of(test)
    assert plain(written.name) in shown
    assert texts("en")["train.weighted"].format(n=told["weighted"], by="By self-influence", run=run.id) in shown
    test.button(key="analyse").click().run()
    assert not test.exception
    assert not test.error
    analysis = place.jobs(1)[0]
    assert analysis.kind == "analysis"
    place.queue.wait(analysis.id)
    analysed = place.run(str(analysis.run_id))
    known = look("train", run=run.id, training=job.id)
    assert "analyse" not in {button.key for button in known.button}
    assert texts("en")["job.open"] in [link.proto.label for link in known.get("page_link")]
    assert analysed.recipe.checkpoints.folder == Path(job.result["folder"])
    assert analysed.name == "without two: ../../etc"
    first = look(run=analysed.id)  # says that the training weighed its examples, and left some out
    assert not first.error
    assert texts("en")["health.not_met"].format(what=texts("en")["health.weights"]) in texts_of(first)
    assert Path(job.result["folder"]).parent == place.root / "trainings"
    assert Path(job.result["folder"]).name.startswith("without_two_etc_2")
    again = look("train", run=analysed.id)
    assert again.checkbox(key="again").value
    assert "2" in again.checkbox(key="again").label
    once_more = started(Studio(place, analysed), again).result
    assert once_more is not None
    assert sorted(once_more["exclusions"]["matched"]) == sorted(chosen["id"])
    everything = look("train", run=analysed.id, again="False")
    job = started(Studio(place, analysed), everything)
    assert job.result is not None
    assert not job.result["exclusions"].get("matched")


@pytest.mark.parametrize("task", TASKS)
def test_another_seed_is_known_as_one(studios: dict[str, Studio], monkeypatch: pytest.MonkeyPatch, task: str) -> None:
    """Whether the recipe said the loss or the checkpoints record it: noise between seeds, and one subject of calibrations."""
    studio, look = studios[task], viewer(studios[task].place.root, monkeypatch)
    test = look("train", run=studio.run.id)
    test.number_input(key=f"seed.{studio.run.id}").set_value(SETTINGS["seed"] + 1)
    job = started(studio, test)
    assert job.result is not None
    analysed = studio.place.compute(Recipe.from_toml(Path(job.result["recipe"])))
    assert isinstance(analysed, Run)
    assert differences(studio.run, analysed) == {"arguments.seed": ("3", "4")}
    assert differ_only_in_seed(studio.run, analysed)
    assert subject_of(studio.run) == subject_of(analysed)


def test_a_run_of_some_checkpoints_is_of_its_whole_training(studios: dict[str, Studio], monkeypatch: pytest.MonkeyPatch) -> None:
    """As those are that followed a training in progress: it is trained as long, without the same list, and read at the same epochs."""
    studio, look = studios["classification"], viewer(studios["classification"].place.root, monkeypatch)
    place, left = studio.place, str(studio.run.splits["train"]["id"].iloc[0])
    file, folder = place.root / "exports" / "one.txt", place.root / "trainings" / "four"
    file.parent.mkdir(exist_ok=True)
    file.write_text(left, encoding="utf-8")
    settings = {**SETTINGS, "epochs": 4, "save_epochs": (1, 2, 4)}
    place.queue.wait(place.start_training(studio.run.recipe, settings=settings, folder=folder, exclusions_file=file).id)
    recipe = {**studio.run.recipe.to_dict(), "name": "until 2", "checkpoints": {"folder": folder, "epochs": [0, 1, 2]}}
    run = place.compute(Recipe.from_dict(recipe))
    assert isinstance(run, Run)
    assert left_out_before(run) == {left}
    assert settings_of(run)[0]["epochs"] == 4
    job = started(studio, look("train", run=run.id))
    assert job.result is not None
    assert (job.result["exclusions"]["matched"], job.result["settings"]["epochs"]) == ([left], 4)
    analysed = place.compute(Recipe.from_toml(Path(job.result["recipe"])))
    assert isinstance(analysed, Run)
    assert analysed.view().self_influence().tolist() == run.view().self_influence().tolist()
    place.queue.wait(start_calibration(place, run, share=0.2, seeds=2).id)
    (found,) = (one for one in calibrations(place, run) if one.run_id == run.id)
    assert found.settings["save_epochs"] == [1, 2]
    planted = plant(run.samples, run.recipe.task, "labels", 0.2, 1)
    trained = place.root / "trainings" / "planted"
    inputs = np.load(run.recipe.data.place)["x"]
    own = {**found.settings, "save_epochs": (1, 2), "seed": 1}
    train(inputs, planted.samples, trained, model=run.recipe.model, task=run.recipe.task, **own)
    kept = pd.read_csv(place.root / "calibrations" / found.number / "seed-1.csv").set_index("id")["self_influence"]
    model, x = build_model(run.recipe.model), torch.from_numpy(inputs)
    for row in np.flatnonzero(planted.samples["split"] == "train"):
        sizes = 0.0
        for epoch in (1, 2):
            model.load_state_dict(torch.load(trained / f"model_epoch_{epoch}.pt", weights_only=True)["model_state_dict"])
            p = torch.softmax(model(x[[row]]), 1)[0, int(planted.samples["label"].iloc[row])]
            loss = -((1 - p) ** found.settings["gamma"]) * torch.log(p)
            sizes += sum(float((part**2).sum()) for part in torch.autograd.grad(loss, list(model.parameters())))
        assert kept[planted.samples["id"].iloc[row]] == pytest.approx(sizes, rel=1e-3)


def test_a_text_file_is_a_list(studios: dict[str, Studio], monkeypatch: pytest.MonkeyPatch) -> None:
    """One that names nothing of the data is refused; of another it is said what named nothing."""
    studio, look = studios["regression"], viewer(studios["regression"].place.root, monkeypatch)
    train, other = (studio.run.splits[side]["id"].iloc[0] for side in ("train", "validation"))
    file = studio.place.root / "recordings" / "mine.txt"
    choosing.places.clear()
    nothing = look("train", run=studio.run.id, without="file")
    assert texts("en")["compute.no_list"].format(roots="workspace") in [info.value for info in nothing.info]
    assert "start_training" not in {button.key for button in nothing.button}, "it would train on everything"
    file.write_text("nobody\n", encoding="utf-8")
    choosing.places.clear()
    test = look("train", run=studio.run.id, without="file", file="workspace/recordings/mine.txt")
    assert texts("en")["train.listed"].format(n=1) in texts_of(test)
    test.button(key="start_training").click().run()
    assert "nobody" in test.error[0].value
    file.write_text(f"{train}\n{other}\nnobody\n", encoding="utf-8")
    job = started(studio, look("train", run=studio.run.id, without="file", file="workspace/recordings/mine.txt"))
    shown = texts_of(look("train", run=studio.run.id, training=job.id))
    known = texts("en")
    assert known["train.elsewhere"].format(n=1, lines=plain(other)) in shown
    assert known["train.unmatched"].format(n=1, lines="nobody") in shown
    file.unlink()
    choosing.places.clear()


OTHERS: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    # address; loss and its settings; what the training then recorded
    "smoothed": ({"task": "classification", "y": "kind"}, "label_smoothing", {"smoothing": 0.2}),
    "of one output": ({"task": "classification", "y": "two"}, "binary_cross_entropy", {}),
    "huber": ({"task": "regression", "y": "number"}, "huber", {"delta": 0.25}),
    "ghm": ({"task": "ranking", "y": "order"}, "ghm", {"margin": 1.5, "ghm_bins": 5, "ghm_alpha": 0.5}),
    "logistic": ({"task": "ranking", "y": "order"}, "logistic", {"margin": 0.5}),
}


@pytest.mark.parametrize("case", OTHERS)
def test_other_data_are_trained_on_and_analysed(studios: dict[str, Studio], monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    """Whatever loss is chosen, with its own settings, is what is trained by, and what the analysis is of."""
    studio, look = studios["ranking"], viewer(studios["ranking"].place.root, monkeypatch)
    address, loss, own = OTHERS[case]
    task = address["task"]
    test = look("train", source="data", kind="arrays", data="workspace/recordings/points.npz", model="mlp", hidden="5", **address)
    assert not test.error
    test.selectbox(key=f"loss.{task}").set_value(loss).run()
    for name, value in {**own, "epochs": 3, "seed": 8}.items():
        test.number_input(key=f"{name}.{task}").set_value(value)
    job = started(studio, test)
    assert job.result is not None
    usual = TrainingSettings() if task == "ranking" else SampleSettings(loss=loss)  # type: ignore[arg-type]
    settings = job.result["settings"]
    assert {name: settings[name] for name in (*own, "loss", "epochs", "seed")} == {**own, "loss": loss, "epochs": 3, "seed": 8}
    assert settings["learning_rate"] == usual.learning_rate
    assert [entry["epoch"] for entry in job.result["history"]] == [0, 1, 2, 3]
    run = studio.place.compute(Recipe.from_toml(Path(job.result["recipe"])))
    assert isinstance(run, Run)
    assert (run.loss.name, run.task) == (loss, task)
    assert all(getattr(run.loss, name) == pytest.approx(value) for name, value in own.items())


def test_what_is_set_is_in_the_address_and_comes_back(studios: dict[str, Studio], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of this run; another one's settings are its own. No word of the address means a saved view."""
    studio, look = studios["regression"], viewer(studios["regression"].place.root, monkeypatch)
    test = look("train", run=studio.run.id)
    changed: dict[str, Any] = {"epochs": 7, "learning_rate": 0.25, "seed": 4}
    for name, value in changed.items():
        test.number_input(key=f"{name}.{studio.run.id}").set_value(value).run()
    test.button_group(key="weigh").set_value("self_influence").run()
    assert not test.warning
    address = {name: value[0] if isinstance(value, list) else value for name, value in test.query_params.items()}
    again = look("train", **address)
    assert not again.warning
    assert {name: again.number_input(key=f"{name}.{studio.run.id}").value for name in changed} == changed
    other = look("train", **{**address, "run": studios["classification"].run.id})
    assert other.number_input(key=f"epochs.{studios['classification'].run.id}").value == SETTINGS["epochs"]


def test_arrays_of_any_name_are_chosen_from(studios: dict[str, Studio], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where none is called y, the first array of one value per sample that is no id is the target until another is chosen."""
    look = viewer(studios["ranking"].place.root, monkeypatch)
    test = look("train", source="data", kind="arrays", data="workspace/recordings/points.npz")
    assert not test.error
    assert (test.selectbox(key="x").value, test.selectbox(key="y").value) == ("x", "kind")
    assert test.selectbox(key="y").options == ["kind", "two", "number", "order"]


def test_a_training_that_learns_nothing_is_said_to(studios: dict[str, Studio], monkeypatch: pytest.MonkeyPatch) -> None:
    """As where its first steps were far too long."""
    studio, look = studios["ranking"], viewer(studios["ranking"].place.root, monkeypatch)
    test = look("train", run=studio.run.id)
    test.number_input(key=f"learning_rate.{studio.run.id}").set_value(1e3)
    job = started(studio, test)
    assert job.result is not None
    assert job.result["history"][-1]["validation_accuracy"] <= 0.5
    told = [warning.value for warning in look("train", run=studio.run.id, training=job.id).warning]
    assert told == [texts("en")["train.not_learnt"]]


def test_every_training_has_its_row_and_zeros_are_told(studios: dict[str, Studio]) -> None:
    """Folders of one name are two; a seed of 0 and an accuracy of 0 are numbers."""
    run = studios["ranking"].run
    folder = run.recipe.checkpoints.folder
    own = read_json(folder / "training.json")
    never = {**own, "validation_accuracy": 0.0, "settings": {**own["settings"], "seed": 0}}
    elsewhere = [{**never, "folder": f"/{place}/{folder.name}"} for place in ("a", "b")]
    found = trained.table(run, [*elsewhere, {**own, "folder": str(folder)}])
    assert found["name"].tolist()[1:] == [folder.name] * 2
    assert found["seed"].tolist() == [3, 0, 0]
    found = trained.table(None, elsewhere)
    assert found["validation_accuracy"].tolist() == [0.0, 0.0]
    assert found["seed"].tolist() == [0, 0]
    assert not {"samples", "pairs", "by", "validation_error"} & set(found)


def test_a_setting_that_a_run_records_is_offered_as_it_is() -> None:
    """A momentum of 0 is not taken for a setting in whole numbers, and a seed beyond the usual is no reason to refuse the page."""
    usual: dict[str, float] = {"momentum": 0, "learning_rate": 1, "seed": 2**32 - 1, "epochs": 3}

    def offered(usual: dict[str, float]) -> None:
        from pages.shared import training

        for name, value in usual.items():
            training.number(training.Asked({"task": {"kind": "ranking"}}), name, value)

    test = AppTest.from_function(offered, args=(usual,)).run()
    assert not test.exception
    for name, value in usual.items():
        shown = test.number_input(key=f"{name}.ranking")
        assert (shown.value, type(shown.value)) == (value, type(training.RANGES[name][0]))
        assert shown.step > 0


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ({"loss": 1.0, "accuracy": 0.5}, {"loss": 1.0, "accuracy": 0.5}, False),
        ({"loss": 1.0, "accuracy": 0.5}, {"loss": 0.9, "accuracy": 0.5}, True),
        ({"loss": 1.0, "accuracy": 0.5}, {"loss": 2.0, "accuracy": 0.59}, False),  # two standard errors of 100 are 0.1
        ({"loss": 1.0, "accuracy": 0.5}, {"loss": 2.0, "accuracy": 0.61}, True),
        ({"loss": 1.0, "error": 2.0}, {"loss": 1.5, "error": 3.0}, False),
        ({}, {}, True),
    ],
)
def test_what_learning_nothing_means(before: dict[str, float], after: dict[str, float], expected: bool) -> None:
    history = [{f"validation_{name}": value for name, value in each.items()} for each in (before, after)]
    assert trained.learnt(history, 100) is expected


@pytest.mark.parametrize("language", LANGUAGES)
def test_what_went_wrong_is_told_and_can_be_tried_again(
    studios: dict[str, Studio], monkeypatch: pytest.MonkeyPatch, language: str
) -> None:
    studio, look = studios["regression"], viewer(studios["regression"].place.root, monkeypatch)
    test = look("train", run=studio.run.id, lang=language)
    test.number_input(key=f"learning_rate.{studio.run.id}").set_value(1e3)
    test.button(key="start_training").click().run()
    job = studio.place.jobs(1)[0]
    with pytest.raises(Exception, match="learning rate"):
        studio.place.queue.wait(job.id)
    test = look("train", run=studio.run.id, lang=language)
    assert plain(str(studio.place.job(job.id).error)) in texts_of(test)
    assert test.button(key=f"resume.{job.id}").label == texts(language)["job.resume"]


def test_what_failed_earlier_is_put_away_and_compute_leads_to_a_training(
    studios: dict[str, Studio], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both sides say what they do not show: failures before the newest success here, jobs beyond the newest there."""
    studio, look, known = studios["regression"], viewer(studios["regression"].place.root, monkeypatch), texts("en")
    test = look("train", run=studio.run.id)
    test.number_input(key=f"learning_rate.{studio.run.id}").set_value(1e3)
    test.button(key="start_training").click().run()
    with pytest.raises(Exception, match="learning rate"):
        studio.place.queue.wait(studio.place.jobs(1)[0].id)
    failed = look("train", run=studio.run.id)
    assert known["train.learning_rate"] + " 1000" in texts_of(failed)  # by which settings, beside the failure
    job = started(studio, look("train", run=studio.run.id))
    ended = sum(each.kind == "training" and each.state == "failed" for each in studio.place.jobs(200))
    labels = [expander.label for expander in look("train", run=studio.run.id).expander]
    assert known["train.ended_before"].format(n=min(ended, computing.SHOWN_JOBS)) in labels
    jobs = look("compute", run=studio.run.id)
    assert known["compute.newest_jobs"].format(n=computing.SHOWN_JOBS) in texts_of(jobs)
    links = [link.proto for link in jobs.get("page_link") if link.proto.label == known["job.result"]]
    assert any(f"training={job.id}" in link.query_string for link in links)


def test_a_run_of_drawn_pairs_is_analysed_over_all_that_are_trained_on(studios: dict[str, Studio]) -> None:
    """This product trains on all pairs, whatever the run's own training drew, and counts densities in its own batches."""
    place, run = studios["ranking"].place, studios["ranking"].run
    recipe = run.recipe.to_dict()
    recipe["task"] |= {"pairs": "drawn", "draw_seed": 5, "ghm_batch": 7}
    job = place.queue.wait(place.start_training(Recipe.from_dict(recipe), settings={**SETTINGS, "batch_pairs": 50}).id)
    assert job.result is not None
    analysis = Recipe.from_toml(Path(job.result["recipe"]))
    assert {"pairs", "draw_seed", "ghm_batch"}.isdisjoint(analysis.to_dict()["task"])
    analysed = place.compute(analysis)
    assert isinstance(analysed, Run)
    assert (analysed.loss.name, analysed.loss.ghm_batch) == ("ghm", 50)


@pytest.mark.browser
def test_in_a_browser_a_training_is_started_watched_and_analysed(
    page: Page, serve: Callable[..., Server], studios: dict[str, Studio]
) -> None:
    """Another seed than the run's; the page goes on by itself, and the analysis becomes the newest run."""
    place, run = studios["classification"].place, studios["classification"].run
    server = serve(place.root)
    visit(page, f"{server.url}/train?run={run.id}")
    seed = page.get_by_label("Seed", exact=True)
    seed.fill("77")
    seed.press("Enter")
    idle(page)
    before = {job.id for job in place.jobs(100)}
    page.get_by_role("button", name="Start the training").click()
    expect(page.get_by_text("seed 77")).to_be_visible(timeout=60_000)  # of the newest training, which is looked at by itself
    (job,) = (job for job in place.jobs(100) if job.id not in before)
    assert job.state == "done"
    assert job.result is not None
    assert job.result["settings"]["seed"] == 77
    idle(page)
    page.get_by_role("button", name="Analyse these checkpoints").click()
    expect(page.get_by_role("combobox", name="Run")).to_be_visible()
    page.wait_for_timeout(500)
    idle(page)
    analysis = place.jobs(1)[0]
    assert analysis.kind == "analysis"
    place.queue.wait(analysis.id)
    analysed = place.run(str(analysis.run_id))
    assert analysed.recipe.checkpoints.folder == Path(job.result["folder"])
    expect(page.get_by_test_id("stException")).to_have_count(0)


@pytest.mark.parametrize(
    ("name", "folder", "expected"),
    [
        ("SIMULATED box 1000hz", "SIMULATED_box_1000hz_margin_2", "SIMULATED_box_1000hz_margin_2"),
        ("my rooms", "points_npz_focal_2", "my rooms, points_npz_focal_2"),
        ("before", "points_npz_focal_2", "points_npz_focal_2"),  # the name of the recipe's own folder, which nobody gave
    ],
)
def test_an_analysis_says_each_thing_once(studios: dict[str, Studio], name: str, folder: str, expected: str) -> None:
    told = {**studios["regression"].run.recipe.to_dict(), "name": name, "checkpoints": {"folder": "/trainings/before"}}
    assert name_after(Recipe.from_dict(told), Path("/trainings") / folder) == expected
