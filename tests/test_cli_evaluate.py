"""Scores put to the test from the shell: what is said is what is kept, and the manual names every option."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import lab
import numpy as np
import pytest
import scipy
from shell import Shell
from test_calibration import write_points

from tracin_core.cli.evaluating import listed
from tracin_core.data.files import read_json
from tracin_core.data.readers import reader_for
from tracin_core.engine.training import train
from tracin_core.errors import InputError
from tracin_core.records.calibrations import calibrations
from tracin_core.records.evaluations import retrainings
from tracin_core.records.faithfulness import faithfulness
from tracin_core.records.runs import Run
from tracin_core.records.trainings import settings_of
from tracin_core.records.workspace import open_workspace

MANUAL = Path(__file__).resolve().parents[1] / "docs" / "command-line.md"
TRAINED = {"epochs": 2, "save_epochs": (1, 2), "learning_rate": 0.05, "batch_size": 8}


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    home = tmp_path_factory.mktemp("evaluate")
    yield Shell(home)
    lab.stop_worker(Shell(home).place)


@pytest.fixture(scope="module")
def run(shell: Shell) -> Run:
    """Points of three classes, a small network trained on them, and its analysis."""
    place, folder = shell.place, shell.home / "checkpoints"
    recipe = lab.arrays_recipe(write_points(shell.home / "points.npz"), folder, "kind", {"kind": "classification"}, 3)
    place.queue.wait(place.start_training(recipe, settings=TRAINED, folder=folder).id)
    made = place.compute(recipe)
    assert isinstance(made, Run)
    return made


@pytest.mark.parametrize("verb", ["calibrate", "retrain", "lds", "leave-out", "stability", "quick", "full"])
def test_help_shows_an_example_and_the_manual_names_every_option(shell: Shell, verb: str) -> None:
    answer = shell.here("evaluate", verb, "--help")
    assert (answer.returncode, answer.stderr) == (0, "")
    assert f"Example: python -m tracin_core evaluate {verb}" in " ".join(answer.stdout.split())
    options = set(re.findall(r"^  (--[a-z-]+)", answer.stdout, re.MULTILINE)) - {"--help", "--workspace", "--json"}
    section = MANUAL.read_text().split("\n## evaluate\n")[1].split("\n## ")[0]
    told = section.split(f"\n`evaluate {verb}`")[1].split("\n`evaluate ")[0]
    assert options
    assert options == {option for option in options if f"| `{option}` |" in told}


def test_a_calibration_is_told_as_it_is_kept(shell: Shell, run: Run) -> None:
    """To a machine whole, to people in words; asked again it is there at once."""
    told = shell.json("evaluate", "calibrate", "--seeds", "2", "--share", "0.1")
    (kept,) = calibrations(shell.place, run)
    assert told["summary"][0]["score"] == kept.summary()["score"].iloc[0]
    assert told["recommendation"]["score"] == kept.recommendation().score
    assert len(told["table"]) == len(kept.table)
    answer = shell.here("evaluate", "calibrate", "--seeds", "2", "--run", run.id)
    assert (answer.returncode, answer.stderr) == (0, "")
    for row in kept.summary().itertuples():
        assert re.search(rf"^\s*{re.escape(str(row.score))}\s+{row.average_precision:.3f} \(", answer.stdout, re.MULTILINE)
    score = kept.recommendation().score
    assert ("Nothing here is reliable" if score is None else f"Recommended on this data: {score}") in answer.stdout
    refused = shell.here("evaluate", "calibrate", "--share", "0.7")
    assert (refused.returncode, "at most 0.25" in refused.stderr) == (2, True)


def test_a_list_is_judged(shell: Shell, run: Run) -> None:
    names = run.splits["train"]["id"].tolist()[:4]
    held_out = run.splits["validation"]["id"].iloc[0]
    (shell.home / "mine.txt").write_text("\n".join(["# mine", *names, held_out, "nobody"]))
    words = ("evaluate", "retrain", "--exclusions-file", "mine.txt", "--seeds", "2", "--draws", "1", "--lasting", "epochs")
    answer = shell.here(*words)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert "Not in this data set, so left as they are: 1 (nobody)\n" in answer.stdout
    assert f"Not on the training side, so left as they are: 1 ({held_out})\n" in answer.stdout
    assert f"8 trainings without and with 4 listed of run {run.id}\n" in answer.stdout
    (kept,) = retrainings(shell.place, run)
    assert (kept.entries, kept.rule) == (4, {"file": "mine.txt"})
    told = shell.json(*words)
    assert told["verdicts"] == {"epochs": kept.verdict("epochs")}
    assert len(told["effects"]) == len(kept.effects())


def test_samples_are_relabelled(shell: Shell, run: Run) -> None:
    """To the label with the largest output of the last checkpoint but for their own; what is measured keeps its labels."""
    names = run.splits["train"]["id"].tolist()[5:8]
    (shell.home / "wrong.txt").write_text("\n".join(names))
    words = ("evaluate", "retrain", "--exclusions-file", "wrong.txt", "--seeds", "2", "--draws", "1", "--action", "relabel")
    told = shell.json(*words)
    assert list(told["verdicts"]) == ["epochs"]
    kept = next(one for one in retrainings(shell.place, run) if one.action == "relabel")
    outputs = run.kernels.train_outputs[-1]
    other = {}
    for row, sample in enumerate(run.splits["train"].itertuples()):
        best = sorted(range(3), key=lambda label: -outputs[row][label])
        other[sample.id] = next(label for label in best if label != sample.label)
    samples = run.samples.assign(
        label=[other[sample.id] if sample.id in names else sample.label for sample in run.samples.itertuples()]
    )
    folder = shell.place.root / "evaluations" / kept.number / "epochs-list-1"
    own = read_json(folder / "training.json")["settings"]
    again = shell.home / "by_hand"
    settings = {name: own[name] for name in (*settings_of(run)[0], "seed")} | {"save_epochs": (own["epochs"],)}
    x = reader_for(run.recipe.data).read(samples)
    train(x, samples, again, model=run.recipe.model, task=run.recipe.task, keep="outputs", **settings)
    np.testing.assert_array_equal(np.load(again / "outputs.npy"), np.load(folder / "outputs.npy"))
    refused = shell.here(*words[:-1], "turn")
    assert (refused.returncode, "exclude, down_weight, relabel" in refused.stderr) == (2, True)


def test_a_list_keeps_the_rule_that_made_it(shell: Shell, run: Run) -> None:
    rule = {"threshold": -0.001, "min_occurrences": 1, "max_exclusions": 3, "pair_mode": "sample"}
    text, _ = shell.place.export_exclusions(run, run.view().exclusions(**rule), rule)
    chosen, found = listed(run, text)
    assert found == rule
    assert len(chosen) == len(run.view().exclusions(**rule)) > 0
    text.write_text(text.read_text() + run.splits["train"]["id"].iloc[-1])  # by hand: no longer what the rule chose
    assert listed(run, text)[1] == {"file": text.name}
    text.write_text(run.splits["validation"]["id"].iloc[0])
    with pytest.raises(InputError, match="no training example"):
        listed(run, text)


def test_influences_are_held_against_training_on_subsets(shell: Shell, run: Run) -> None:
    words = ("evaluate", "lds", "--subsets", "6", "--repeats", "2")
    answer = shell.here(*words)
    assert (answer.returncode, answer.stderr) == (0, "")
    (kept,) = faithfulness(shell.place, run)
    for row in kept.methods.itertuples():
        assert re.search(rf"^\s*{row.method}\s+{row.lds:.3f} \({row.low:.3f} to {row.high:.3f}\)", answer.stdout, re.MULTILINE)
    told = shell.json(*words)
    assert [one["lds"] for one in told["methods"]] == kept.methods["lds"].tolist()
    assert len(told["per_test"]) == len(run.view().test_pairs)


def test_runs_of_other_seeds_are_held_against_each_other(shell: Shell, run: Run) -> None:
    """Three more seeds of the same training, found by themselves; the ranks are scipy's."""
    runs = [run]
    for seed in (1, 2, 3):
        folder = shell.home / f"seed-{seed}"
        recipe = run.recipe.model_copy(update={"checkpoints": run.recipe.checkpoints.model_copy(update={"folder": folder})})
        shell.place.queue.wait(shell.place.start_training(recipe, settings={**TRAINED, "seed": seed}, folder=folder).id)
        made = shell.place.compute(recipe)
        assert isinstance(made, Run)
        runs.append(made)
    told = shell.json("evaluate", "stability", "--run", run.id)
    assert set(told["runs"]) == {one.id for one in runs}
    assert (told["examples"], len(told["pairs"]), len(told["noise"])) == (len(run.splits["train"]), 6, len(run.splits["train"]))
    by_id = {one.id: one.view().self_influence() for one in runs}
    for row in told["pairs"]:
        assert row["spearman"] == pytest.approx(scipy.stats.spearmanr(by_id[row["a"]], by_id[row["b"]]).statistic)
    values = np.array([by_id[name] for name in told["runs"]])
    ways = [((0, 1), (2, 3)), ((0, 2), (1, 3)), ((0, 3), (1, 2))]
    alike = [scipy.stats.spearmanr(*(values[list(part)].mean(0) for part in way)).statistic for way in ways]
    assert (told["ensembles"]["spearman"], told["halvings"]) == (pytest.approx(np.mean(alike)), 3)
    ratios = np.abs(values.mean(0)) / values.std(0, ddof=1)
    assert told["clear"] == pytest.approx((ratios > 2).mean())
    answer = shell.here("evaluate", "stability", "--runs", f"{runs[0].id},{runs[1].id}")
    assert (answer.returncode, answer.stderr) == (0, "")
    refused = shell.here("evaluate", "stability", "--runs", runs[0].id)
    assert (refused.returncode, "1 run shows no stability" in refused.stderr) == (2, True)


@pytest.mark.parametrize("across", ["checkpoints", "layers"])
def test_parts_of_a_run_are_held_against_the_whole(shell: Shell, run: Run, across: str) -> None:
    """Each part is the view that sums it alone; halves, and all layers but one, add up to the whole."""
    told = shell.json("evaluate", "stability", "--run", run.id, "--across", across, "--score", "mean_influence")
    rows = {row["b"]: row["spearman"] for row in told["pairs"]}
    assert (told["noise"], told["clear"]) == (None, None)  # parts overlap, so their spread is no noise
    whole = run.view().mean_influence()
    if across == "checkpoints":
        epochs = list(run.summed_epochs)
        parts = {f"epoch {epoch}": run.view(checkpoints=[epoch]) for epoch in epochs}
        assert len(rows) == len(epochs) == 2  # of more, halves too
    else:
        parts = {layer: run.view(layers=[layer]) for layer in run.layers}
        parts |= {f"without {run.layers[0]}": run.view(layers=list(run.layers[1:]))}
        assert len(rows) == 2 * len(run.layers)
    for name, view in parts.items():
        assert rows[name] == pytest.approx(scipy.stats.spearmanr(whole, view.mean_influence()).statistic), name
    refused = shell.here("evaluate", "stability", "--runs", run.id, "--across", across)
    assert (refused.returncode, "is about one" in refused.stderr) == (2, True)


def test_every_question_at_once_is_one_document_and_is_not_asked_again(shell: Shell, run: Run) -> None:
    """What each part says is what its own command kept; asked again no job trains anything."""
    told = shell.json("evaluate", "quick", "--run", run.id, "--output", "answers")
    assert json.loads((shell.home / "answers" / "evaluation-quick.json").read_text()) == told
    calibrated, foretold, retrained = told["parts"]
    (kept,) = (one for one in calibrations(shell.place, run) if one.number == calibrated["content"]["number"])
    assert (calibrated["seeds"], calibrated["content"]["recommendation"]["score"]) == (kept.seeds, kept.recommendation().score)
    (lds,) = (one for one in faithfulness(shell.place, run) if one.number == foretold["content"]["number"])
    assert [row["method"] for row in foretold["rows"]] == lds.methods["method"].tolist()
    (kept,) = (one for one in retrainings(shell.place, run) if one.number == retrained["content"]["number"])
    assert retrained["verdict"].endswith(kept.verdict("epochs"))
    rule = {"threshold": run.view().suggested_threshold(1, "sample"), "min_occurrences": 1, "max_exclusions": 50}
    assert kept.entries == len(run.view().exclusions(**rule, pair_mode="sample"))
    assert told["cpu_seconds"] == pytest.approx(sum(part["cpu_seconds"] for part in told["parts"]))
    assert foretold["cpu_seconds"] > 0.1  # it trained
    text = (shell.home / "answers" / "evaluation-quick.md").read_text()
    assert all(f"## {part['question']}" in text and part["verdict"] in text for part in told["parts"])
    trained = {file: file.stat().st_mtime_ns for file in shell.place.root.rglob("training.json")}
    answer = shell.here("evaluate", "quick", "--run", run.id)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert {file: file.stat().st_mtime_ns for file in shell.place.root.rglob("training.json")} == trained
    assert (shell.place.root / "exports" / run.id / "evaluation" / "evaluation-quick.md").is_file()
    assert shell.place.verify().damages == []
    same = open_workspace(shutil.copytree(shell.place.root, shell.home / "same"))  # which no worker serves
    assert same.rebuild_catalogue().damages == []
