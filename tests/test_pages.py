"""Every page in every state: nothing yet, something, failed; in both languages; without a browser."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import lab
import pytest
import torch
from conftest import listed_of, opened, texts_of
from lab import Studio
from streamlit.testing.v1 import AppTest

from pages.shared import frame
from pages.shared.choosing import places
from pages.shared.i18n import LANGUAGES, texts
from tracin_core.engine.models import Ranker
from tracin_core.errors import JobFailedError
from tracin_core.recipe import Recipe
from tracin_core.records.runs import Run
from tracin_core.records.workspace import open_workspace

PAGES = [name for pages in frame.SECTIONS.values() for name in pages]
ABOUT_A_RUN = [name for name in PAGES if name not in ("compute", "train")]


@pytest.fixture
def look(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> Callable[..., AppTest]:
    """`look("angles", cell="36-72")`: a page of the dashboard over the finished run."""
    return viewer(studio.place.root, monkeypatch)


def viewer(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., AppTest]:
    monkeypatch.setenv("TRACIN_WORKSPACE", str(workspace))

    return opened


def said(language: str, key: str, **values: object) -> str:
    return texts(language)[key].format(**values)


# ---- nothing yet ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("name", PAGES)
def test_without_a_run_a_page_says_how_to_begin(open_page: Callable[..., AppTest], name: str, language: str) -> None:
    test = open_page(name, lang=language)
    assert not test.exception
    assert not test.error
    assert test.header[0].value == said(language, f"page.{name}")
    if name == "compute":
        assert said(language, "compute.no_jobs") in texts_of(test)
        assert said(language, "compute.no_checkpoints", roots="workspace") in texts_of(test)
    elif name == "train":
        assert said(language, "train.none") in texts_of(test)
        assert said(language, "compute.no_recordings", roots="workspace") in texts_of(test)
    else:
        assert said(language, "empty.title") in texts_of(test)
        assert test.button(key="start_demo").label == said(language, "empty.demo")


# ---- something ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("name", PAGES)
def test_a_finished_run_is_shown_and_told_as_simulated(
    look: Callable[..., AppTest], studio: Studio, name: str, language: str
) -> None:
    test = look(name, lang=language, run=studio.run.id)
    assert not test.exception
    assert not test.error
    assert not test.warning or name == "threshold"
    assert test.header[0].value == said(language, f"page.{name}")
    assert studio.run.digest[:8] in texts_of(test)
    assert said(language, "run.simulated") in texts_of(test)


def test_scores_scales_and_tails_change_what_is_shown(look: Callable[..., AppTest], studio: Studio) -> None:
    view = studio.run.view()
    shown = {}
    for score in ("self_influence", "mean_influence", "worst_influence"):
        for tail in ("high", "low"):
            test = look("distribution", score=score, scale="linear", tail=tail)
            assert not test.error
            shown[score, tail] = test.dataframe[-1].value["id"].iloc[0]
    own = view.self_influence()
    assert shown["self_influence", "high"] == view.train_pairs["id"][own.argmax()]
    assert shown["mean_influence", "low"] == view.train_pairs["id"][view.mean_influence().argmin()]
    assert shown["worst_influence", "low"] == view.train_pairs["id"][view.influence().min(axis=1).argmin()]


def test_a_logarithm_is_offered_for_scores_that_have_one(look: Callable[..., AppTest]) -> None:
    assert look("distribution", score="self_influence", scale="log").button_group(key="scale").value == "log"
    test = look("distribution", score="mean_influence", scale="log")
    assert "scale = log" in test.warning[0].value.replace("\\", "")
    assert test.button_group(key="scale").value == "asinh"
    assert not test.error


def test_a_cell_shows_its_pairs_alone(look: Callable[..., AppTest]) -> None:
    test = look("angles", cell="36-72")
    assert {tuple(row) for row in test.dataframe[0].value[["what1", "what2"]].map(lambda text: text.split("°")[0]).to_numpy()} == {
        ("36", "72")
    }


def test_neighbours_are_those_of_the_chosen_test_pair(look: Callable[..., AppTest], studio: Studio) -> None:
    view = studio.run.view()
    test_pair = view.test_pairs["id"][7]
    proponents, opponents = view.top(test_pair, 20)
    for side, expected in (("proponents", proponents), ("opponents", opponents)):
        test = look("neighbours", test=test_pair, side=side)
        assert test.dataframe[0].value["id"].tolist() == expected["id"].tolist()


@pytest.mark.parametrize("mode", ["ranking_pair", "full_pair", "sample"])
def test_the_list_is_the_rules_own(look: Callable[..., AppTest], studio: Studio, mode: str) -> None:
    view = studio.run.view()
    threshold = view.suggested_threshold(2, mode)
    test = look("threshold", mode=mode, m=2, most=4, T=threshold)
    chosen = view.exclusions(threshold, 2, 4, mode)
    assert listed_of(test)["id"].tolist() == chosen["id"].tolist()
    assert test.metric[0].value == str(len(chosen))
    assert test.metric[1].value == f"{view.sweep(2, mode).counts(threshold)['pairs'][0]:,}"


def test_the_threshold_follows_the_suggestion_until_one_is_set(look: Callable[..., AppTest], studio: Studio) -> None:
    view = studio.run.view()
    test = look("threshold", m=2)
    for mode in ("ranking_pair", "sample"):
        test.button_group(key="mode").set_value(mode).run()
        assert test.number_input(key="T").value == view.suggested_threshold(2, mode)
    test.number_input(key="T").set_value(-0.5).run()
    test.button_group(key="mode").set_value("ranking_pair").run()
    assert test.number_input(key="T").value == -0.5


@pytest.mark.parametrize("mode", ["ranking_pair", "full_pair", "sample"])
def test_the_receipt_counts_what_training_loses(look: Callable[..., AppTest], studio: Studio, mode: str) -> None:
    """By hand: the training pairs that the list names, or that hold a recording it names."""
    view = studio.run.view()
    test = look("threshold", mode=mode, m=1, most=2, T=-0.001)
    listed = view.exclusions(-0.001, 1, 2, mode)["id"].tolist()
    pairs = view.train_pairs
    lost = sum(row.id in listed or row.id1 in listed or row.id2 in listed for row in pairs.itertuples())
    assert test.metric[2].value == f"{lost:,} ({lost / len(pairs):{'.0%' if lost >= len(pairs) / 10 else '.1%'}})"
    assert said("en", "guard.capped", n=2, all=len(view.exclusions(-0.001, 1, None, mode))) in texts_of(test)


def test_a_rule_that_nothing_meets_says_so(look: Callable[..., AppTest], studio: Studio) -> None:
    view = studio.run.view()
    most = len(view.test_pairs)
    test = look("threshold", m=most)
    assert said("en", "threshold.nothing", occurrences=most, tests=most) in texts_of(test)


def test_a_written_list_is_on_disk_and_survives_the_session(look: Callable[..., AppTest], studio: Studio) -> None:
    test = look("threshold", m=1, most=3)
    test.text_input(key="who").set_value("Ada").run()
    test.button(key="write_list").click().run()
    assert not test.error
    newest = studio.place.exported_exclusions(studio.run).iloc[0]
    lines = [line for line in newest["text"].read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    assert lines == listed_of(test)["id"].tolist()
    assert newest["who"] == "Ada"
    command = look("threshold").code[0].value
    assert f"--run {studio.run.id} --exclusions-file" in command
    assert command.endswith(newest["text"].name)
    assert os.path.exists(command.split()[-1])


def test_an_analysis_starts_from_the_page_and_an_equal_one_from_the_cache(look: Callable[..., AppTest], studio: Studio) -> None:
    test = look("compute")
    assert "36 recordings, 6 angles, 6 takes." in texts_of(test)
    for side, count in {"train": 3, "validation": 2, "test": 1}.items():
        test.number_input(key=f"{side}.6").set_value(count)
    test.button(key="start").click().run()
    assert not test.error
    job = studio.place.jobs(limit=1)[0]
    assert job.kind == "analysis"
    studio.place.queue.wait(job.id)
    started = studio.place.run(str(job.run_id))
    assert started.simulated
    assert started.splits["train"]["id"].tolist() == studio.run.splits["train"]["id"].tolist()
    test.button(key="start").click().run()
    assert said("en", "compute.cached") in texts_of(test)


def test_a_run_bears_the_name_of_whoever_asked_for_it(look: Callable[..., AppTest], studio: Studio) -> None:
    recipe = Recipe.from_dict({**studio.run.recipe.to_dict(), "task": {"margin": 0.5}})
    run = studio.place.by("Mei *Lin*").compute(recipe)
    assert isinstance(run, Run)
    assert run.manifest.who == "Mei *Lin*"
    assert "asked for by Mei \\*Lin\\*" in texts_of(look("distribution", run=run.id))
    assert "asked for by" not in texts_of(look("distribution", run=studio.run.id))


def test_a_folder_can_be_looked_into(look: Callable[..., AppTest], studio: Studio) -> None:
    test = look("compute")
    test.button(key="inspect").click().run()
    studio.place.queue.wait(studio.place.jobs(limit=1)[0].id)
    found = test.run().dataframe[0].value
    assert found["epoch"].tolist() == [0, 1, 2]
    assert found["accepted"].all()


def test_a_formula_is_offered_where_a_look_found_adam_s_second_moment(look: Callable[..., AppTest], studio: Studio) -> None:
    model = Ranker("small")
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.rand(2, 1, 33, 40)).sum().backward()
    optimizer.step()
    folder = studio.place.root / "trainings" / "by_adam"
    folder.mkdir()
    content = {"epoch": 1, "model_state_dict": model.state_dict(), "optimizer_state_dict": optimizer.state_dict()}
    torch.save({**content, "args": {"loss_type": "margin", "margin": 5.0}}, folder / "model_epoch_1.pt")
    places.clear()
    offered = []
    for name in ("small", "by_adam"):
        test = look("compute", folder=f"workspace/trainings/{name}")
        assert "precondition" not in [box.key for box in test.selectbox]
        test.button(key="inspect").click().run()
        studio.place.queue.wait(studio.place.jobs(limit=1)[0].id)
        test.run()
        offered.append("precondition" in [box.key for box in test.selectbox])
    assert offered == [False, True]
    test.selectbox(key="precondition").select("adam").run()
    test.button(key="start").click().run()
    job = studio.place.jobs(limit=1)[0]
    studio.place.queue.wait(job.id)
    run_id = studio.place.queue.get(job.id).run_id
    assert studio.place.run(str(run_id)).precondition == "adam"
    shutil.rmtree(folder)


# ---- failed ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("name", ABOUT_A_RUN)
def test_a_damaged_block_is_advice_on_every_page(
    studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, language: str
) -> None:
    place = shutil.copytree(studio.place.root, tmp_path / "damaged")
    block = sorted((place / "kernels" / studio.run.manifest.groups[-1]).glob("*-*.f32"))[0]
    raw = bytearray(block.read_bytes())
    raw[7] ^= 1
    block.write_bytes(raw)
    test = viewer(place, monkeypatch)(name, lang=language, run=studio.run.id)
    assert not test.exception
    assert block.stem in test.error[0].value.replace("\\", "")
    assert said(language, "error.MachineError.next") in test.error[0].value


@pytest.mark.parametrize("name", ABOUT_A_RUN)
def test_a_link_to_a_run_that_is_gone_says_so(look: Callable[..., AppTest], name: str) -> None:
    test = look(name, run="gone")
    assert "There is no run 'gone'" in test.error[0].value
    assert not test.metric


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [("neighbours", "test", "nobody"), ("angles", "cell", "0-1"), ("threshold", "T", "3"), ("distribution", "scale", "cubic")],
)
def test_a_value_that_does_not_exist_is_named(look: Callable[..., AppTest], name: str, key: str, value: str) -> None:
    test = look(name, **{key: value})
    assert f"{key} = {value}" in test.warning[0].value.replace("\\", "")
    assert not test.error


@pytest.mark.parametrize(
    ("folder", "files", "message"),
    [
        ("strange", {"model_epoch_1.pt": b"cos\nsystem\n(S'echo'\ntR."}, "model_epoch_1"),
        ("other", {"weights.pt": b""}, "has no file named 'model_epoch_"),
    ],
)
def test_bad_checkpoints_are_advice_on_the_page(
    look: Callable[..., AppTest], studio: Studio, folder: str, files: dict[str, bytes], message: str
) -> None:
    place = studio.place.root / "trainings" / folder
    place.mkdir(exist_ok=True)
    for name, content in files.items():
        (place / name).write_bytes(content)
    places.clear()  # what was there a moment ago is remembered for some seconds
    test = look("compute", folder=f"workspace/trainings/{folder}")
    test.button(key="inspect").click().run()
    if not test.error:
        studio.place.queue.wait(studio.place.jobs(limit=1)[0].id)
        test.run()
    shutil.rmtree(place)
    shown = [error.value for error in test.error] + [frame_.value.to_string() for frame_ in test.dataframe]
    assert message in "".join(shown).replace("\\", "")
    assert test.error or "refused" in test.warning[0].value


def break_a_recording(root: Path) -> None:
    sorted(root.rglob("*.wav"))[4].write_bytes(b"RIFF no recording")


def test_one_angle_is_advice_on_the_page_before_anything_starts(look: Callable[..., AppTest], studio: Studio) -> None:
    root = shutil.copytree(studio.place.root / "recordings" / "small", studio.place.root / "recordings" / "one-angle")
    for folder in sorted(root.glob("deg*"))[1:]:
        shutil.rmtree(folder)
    places.clear()
    jobs = len(studio.place.jobs(limit=50))
    test = look("compute", data=f"workspace/recordings/{root.name}", folder="workspace/trainings/small")
    test.button(key="start").click().run()
    assert "at least two different angles" in test.error[0].value
    assert len(studio.place.jobs(limit=50)) == jobs
    shutil.rmtree(root)
    places.clear()


def test_bad_recordings_are_advice_on_the_page(look: Callable[..., AppTest], studio: Studio) -> None:
    message = "cannot be read"
    root = shutil.copytree(studio.place.root / "recordings" / "small", studio.place.root / "recordings" / "damaged")
    break_a_recording(root)
    places.clear()
    test = look("compute", data=f"workspace/recordings/{root.name}", folder="workspace/trainings/small")
    for side, count in {"train": 3, "validation": 2, "test": 1}.items():
        test.number_input(key=f"{side}.6").set_value(count)
    test.button(key="start").click().run()
    job = studio.place.jobs(limit=1)[0]
    with pytest.raises(JobFailedError, match=message):
        studio.place.queue.wait(job.id)
    test.run()
    assert message in texts_of(test).replace("\\", "")
    assert test.button(key=f"resume.{job.id}").label == said("en", "job.resume")
    shutil.rmtree(root)
    places.clear()


def test_a_folder_outside_the_roots_cannot_be_linked(look: Callable[..., AppTest]) -> None:
    test = look("compute", folder="workspace/../..")
    assert "folder = workspace/../.." in test.warning[0].value.replace("\\", "")


# ---- examples that are samples ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def of_samples(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Studio]]:
    """A workspace with a run of classification and one of regression, over the same points."""
    place = open_workspace(tmp_path_factory.mktemp("samples"))
    file = lab.write_arrays(place.root / "recordings" / "points.npz")
    runs = {}
    for task, target, outputs in (("classification", "kind", 3), ("regression", "number", 1)):
        folder = place.root / "trainings" / task
        recipe = lab.arrays_recipe(file, folder, target, {"kind": task}, outputs)
        place.queue.wait(place.start_training(recipe, settings=lab.SHORT, folder=folder).id)
        run = place.compute(recipe)
        assert isinstance(run, Run)
        runs[task] = Studio(place, run)
    yield runs
    lab.stop_worker(place)


@pytest.mark.parametrize("name", ABOUT_A_RUN)
@pytest.mark.parametrize(("task", "language"), [("classification", "zh-TW"), ("regression", "en")])
def test_every_page_shows_samples(
    of_samples: dict[str, Studio], monkeypatch: pytest.MonkeyPatch, task: str, name: str, language: str
) -> None:
    studio = of_samples[task]
    test = viewer(studio.place.root, monkeypatch)(name, lang=language, run=studio.run.id)
    assert not test.exception
    assert not test.error
    assert said(language, "run.pairs@sample", train=studio.run.counts[0], test=studio.run.counts[1]) in texts_of(test)


def test_a_group_shows_its_samples_alone(of_samples: dict[str, Studio], monkeypatch: pytest.MonkeyPatch) -> None:
    studio = of_samples["classification"]
    test = viewer(studio.place.root, monkeypatch)("angles", run=studio.run.id, cell="1")
    train = studio.run.splits["train"]
    assert set(test.dataframe[0].value["id"]) == set(train.loc[train["label"] == 1, "id"])


def test_samples_are_listed_and_trained_without(of_samples: dict[str, Studio], monkeypatch: pytest.MonkeyPatch) -> None:
    """The threshold page's list names samples, and a training that follows it does without them."""
    studio = of_samples["classification"]
    test = viewer(studio.place.root, monkeypatch)("threshold", run=studio.run.id, m=1, most=2)
    test.button(key="write_list").click().run()
    written = studio.place.exported_exclusions(studio.run).iloc[0]
    assert written["entries"] >= 1
    recipe = Recipe.from_dict(studio.run.recipe.to_dict())
    job = studio.place.start_training(recipe, settings=lab.SHORT, exclusions_file=written["text"])
    result = studio.place.queue.wait(job.id).result
    assert result is not None
    assert result["exclusions"]["samples"] == written["entries"]
    assert result["train_samples"] == len(studio.run.splits["train"]) - written["entries"]


def test_arrays_are_analysed_from_the_page(of_samples: dict[str, Studio], monkeypatch: pytest.MonkeyPatch) -> None:
    studio = of_samples["classification"]
    look = viewer(studio.place.root, monkeypatch)
    test = look(
        "compute",
        kind="arrays",
        data="workspace/recordings/points.npz",
        y="kind",
        folder="workspace/trainings/classification",
        hidden="5",
    )
    assert "30 samples, 3 different targets; shape of a sample: 4." in texts_of(test)
    test.button(key="start").click().run()
    assert not test.error
    job = studio.place.jobs(limit=1)[0]
    studio.place.queue.wait(job.id)
    started = studio.place.run(str(job.run_id))
    assert (started.task, started.recipe.model.kind) == ("classification", "mlp")


def test_a_training_of_this_product_is_analysed_by_its_recipe(
    of_samples: dict[str, Studio], monkeypatch: pytest.MonkeyPatch
) -> None:
    studio = of_samples["regression"]
    test = viewer(studio.place.root, monkeypatch)("compute")
    test.selectbox(key="recipe").set_value("workspace/trainings/regression").run()
    test.button(key="start_recipe").click().run()
    assert not test.error
    assert said("en", "compute.cached") in texts_of(test)  # it asks for the very run that there is


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[data]\nkind = "arrays"\nfile = "/etc/hostname"\n[checkpoints]\nfolder = "{folder}"\n', "outside the folders"),
        (
            '[data]\nkind = "arrays"\nfile = "{file}"\n[checkpoints]\nfolder = "{folder}"\n[engine]\nexecutor = "dask"\n'
            'scheduler = "tcp://127.0.0.1:9"\n',
            "asks for a cluster",
        ),
        ("[data", "is not valid TOML"),
    ],
)
def test_a_recipe_beside_checkpoints_may_name_nothing_else(
    of_samples: dict[str, Studio], monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    """Whoever can put a file there could otherwise read any file of this server, or reach any host from it."""
    studio = of_samples["regression"]
    folder = studio.place.root / "trainings" / "aaa"
    folder.mkdir(exist_ok=True)
    (folder / "model_epoch_1.pt").write_bytes(b"")
    file = studio.place.root / "recordings" / "points.npz"
    (folder / "analysis.toml").write_text(text.replace("{folder}", str(folder)).replace("{file}", str(file)), encoding="utf-8")
    places.clear()
    test = viewer(studio.place.root, monkeypatch)("compute")
    test.selectbox(key="recipe").set_value("workspace/trainings/aaa").run()
    test.button(key="start_recipe").click().run()
    shutil.rmtree(folder)
    places.clear()
    assert message in test.error[0].value.replace("\\", "")
