"""The lab's way through the shell: analyse, compare thresholds, list, train, and all of it at once; for people and for machines."""

import json
import os
import pty
import re
import shutil
import subprocess
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import lab
import numpy as np
import pandas as pd
import pytest
import torch
from shell import ENVIRONMENT, PATIENCE, Shell, command

from tracin_core.cli.asking import Analysis, Rule, numbers, recipes_of
from tracin_core.cli.computing import on_device
from tracin_core.data.readers import list_recordings, read_inputs
from tracin_core.data.samples import split_samples, stratified_pairs
from tracin_core.engine.training import train, train_ranker
from tracin_core.errors import InputError, ViewError
from tracin_core.recipe import SIMULATED_MARK, Recipe, SplitSection
from tracin_core.records.interchange import read_exclusions
from tracin_core.records.runs import Run
from tracin_core.records.trainings import settings_of
from tracin_core.records.verdicts import decided, subject
from tracin_core.scores.actions import weights_by
from tracin_core.scores.thresholds import threshold_table

FREQUENCIES = ("1000hz", "500hz")
WHAT = ("--material", "box", "--data-root", "recordings", "--checkpoint-dir", "checkpoints")
THRESHOLD = "-0.3"  # some harm is below it in both frequencies


def folder_of(frequency: str) -> str:
    return f"checkpoints/box_{frequency}_standard_20260101_000000"


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """Recordings of two angles at two frequencies, and checkpoints of each, in the lab's folders."""
    home = tmp_path_factory.mktemp("verbs")
    make_recordings(home / "recordings")
    for frequency in FREQUENCIES:
        samples = split_samples(list_recordings(home / "recordings", "box", frequency), SplitSection())
        inputs = read_inputs(home / "recordings", samples)
        train_ranker(inputs, samples, home / folder_of(frequency), epochs=2, save_epochs=(), batch_pairs=20)
    yield Shell(home)
    lab.stop_worker(Shell(home).place)


def make_recordings(root: Path) -> None:
    """Twenty takes each, as small finished spectra: noise with a band that is hardly stronger at one angle than at the other."""
    generator = np.random.default_rng(3)
    for angle, frequency, take in product((0, 36), FREQUENCIES, range(20)):
        spectrum = generator.normal(size=(40, 40)).astype(np.float32)
        spectrum[:10] += 0.3 * (angle > 0)
        path = root / f"deg{angle:03d}" / "box" / f"box_deg{angle:03d}_{frequency}_{take:02d}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, spectrum)
    (root / SIMULATED_MARK).write_text("Made for a test.\n")


@pytest.fixture(scope="module")
def computed(shell: Shell) -> dict[str, Any]:
    """What compute-influence tells a machine of every frequency; the score files are in `meta`."""
    written = ("--compute-self-influence", "--compute-influence", "--save-per-checkpoint-influence", "--metadata-dir", "meta")
    return shell.json("compute-influence", *WHAT, "--frequency", "all", *written, process=True)


@pytest.fixture(scope="module")
def run(shell: Shell, computed: dict[str, Any]) -> Run:
    return shell.place.run(computed["runs"][0]["run"])


# ---- the path -------------------------------------------------------------------------------------------------------------------


def test_all_is_every_frequency_with_its_own_checkpoints(shell: Shell, computed: dict[str, Any]) -> None:
    """Lowest first; each run's files hold its own scores, under the names that exist."""
    assert [told["data"] for told in computed["runs"]] == ["box 500hz", "box 1000hz"]
    for told in computed["runs"]:
        run = shell.place.run(told["run"])
        frequency = told["data"].split()[1]
        assert run.recipe.checkpoints.folder == shell.home / folder_of(frequency)
        assert (told["simulated"], told["differences"], told["test"]) == (True, [], len(run.test_pairs))
        stems = ("metadata", "per_checkpoint_metadata", "influence_metadata", "per_checkpoint_influence_metadata")
        assert told["files"] == [f"meta/box_{frequency}_{stem}.json" for stem in stems]
        view, row, test = run.view(), 7, run.test_pairs["id"][3]
        pair = view.train.table["id"][row]
        own, parts, towards, _ = (json.loads((shell.home / file).read_text()) for file in told["files"])
        assert own[pair] == {"tracin_self_influence": view.self_influence()[row]}
        assert towards[pair][f"tracin_influence_{test}"] == view.influence(test)[row]
        assert np.isclose(sum(parts[pair].values()), view.self_influence()[row])


def test_the_table_counts_what_a_loop_counts(shell: Shell, run: Run) -> None:
    """Thresholds with and without `=`; every number counted one score at a time."""
    asked = "-0.1,-0.3,-5"
    with_sign = shell.json("test-pair-exclusion", "--run", run.id, f"--thresholds={asked}", "--max-exclusions", "9")
    without = shell.json("test-pair-exclusion", "--run", run.id, "--thresholds", asked, "--max-exclusions", "9")
    assert with_sign == without
    scores = run.view().influence()
    for told in without["runs"][0]["thresholds"]:
        below = [[score < told["threshold"] for score in row] for row in scores.tolist()]
        candidates = sum(sum(row) >= 3 for row in below)
        counted = {"occurrences": sum(map(sum, below)), "candidates": candidates, "listed": min(candidates, 9)}
        assert {name: told[name] for name in counted} == counted
    assert without["runs"][0]["thresholds"][0]["listed"] > 0


@pytest.mark.parametrize("mode", ["ranking_pair", "full_pair", "sample"])
def test_the_table_is_what_each_list_has(run: Run, mode: Any) -> None:
    """Listed: as many entries as the rule itself lists, capped or not; candidates: before the cap."""
    view, thresholds = run.view(), [-0.1, -0.3, -2.0]
    for cap in (4, None):
        table = threshold_table(view, thresholds, min_occurrences=2, max_exclusions=cap, pair_mode=mode)
        for row in table.itertuples():
            rule = {"threshold": row.threshold, "min_occurrences": 2, "pair_mode": mode}
            assert row.listed == len(view.exclusions(**rule, max_exclusions=cap))
            base = {**rule, "pair_mode": "sample" if mode == "sample" else "ranking_pair", "max_exclusions": None}
            assert row.candidates == len(view.exclusions(**base))
            assert row.occurrences == view.exclusions(**{**base, "min_occurrences": 1})["occurrences"].sum()


def test_a_score_file_gives_the_list_that_its_run_gives(shell: Shell, run: Run) -> None:
    file = "meta/box_500hz_influence_metadata.json"
    told = shell.json("generate-exclusions", "--metadata-file", file, "--threshold", THRESHOLD, "--output-file", "of-file.txt")
    chosen = run.view().exclusions(threshold=float(THRESHOLD))
    assert read_exclusions(shell.home / "of-file.txt") == chosen["id"].tolist() != []
    assert [entry["average_influence"] for entry in told["entries"]] == pytest.approx(chosen["average_influence"].tolist())
    assert "# SIMULATED data" in (shell.home / "of-file.txt").read_text()
    provenance = json.loads((shell.home / "of-file.provenance.json").read_text())
    assert (provenance["score_file"], provenance["run"]) == (Path(file).name, run.id)


def test_what_people_decided_is_told_and_applied_when_asked_for(shell: Shell, run: Run) -> None:
    """The shell's list with --verdicts is the Threshold page's; without, it says what it leaves aside."""
    rule = ("generate-exclusions", "--run", run.id, "--threshold", THRESHOLD, "--output-file", "decided.txt")
    chosen = run.view().exclusions(threshold=float(THRESHOLD))
    row, spare = next((row, pair) for row, pair in enumerate(run.train_pairs.itertuples()) if pair.id not in set(chosen["id"]))
    first = chosen.iloc[0]
    shell.place.decide(run, (first["id1"], first["id2"]), "keep", who="Mei")
    shell.place.decide(run, (spare.id2, spare.id1), "exclude", who="Mei")
    try:
        told = shell.here(*rule)
        assert "People exclude 1 more and keep 1 of these (Threshold page); add --verdicts" in told.stdout
        assert read_exclusions(shell.home / "decided.txt") == chosen["id"].tolist()
        document = shell.json(*rule, "--verdicts")
        assert read_exclusions(shell.home / "decided.txt") == [*chosen["id"].iloc[1:], spare.id]
        assert document["verdicts"] == {"excluded_by_person": 1, "kept_by_person": 1}
        provenance = json.loads((shell.home / "decided.provenance.json").read_text())
        assert provenance["rule"]["kept_by_person"] == 1
        assert [entry["decided_by"] for entry in provenance["entries"]] == ["rule"] * (len(chosen) - 1) + ["person"]
        assert provenance["entries"][-1]["occurrences"] == (run.view().influence()[row] < float(THRESHOLD)).sum()
    finally:
        for samples in ((first["id1"], first["id2"]), (spare.id1, spare.id2)):
            shell.place.decide(run, samples, "none", who="Mei")


def test_what_people_excluded_has_the_rules_own_numbers(run: Run) -> None:
    """In each mode, also where the limit cut it."""
    view = run.view()
    for mode in ("full_pair", "sample", "ranking_pair"):
        rule = {"threshold": float(THRESHOLD), "min_occurrences": 1, "pair_mode": mode}
        whole = view.exclusions(**rule, max_exclusions=None)
        last = whole.iloc[-1]
        about = subject((last["id1"], last["id2"]) if "id1" in last else (last["id"],))
        said = pd.DataFrame({"verdict": ["exclude"]}, index=[about])
        final = decided(view, view.exclusions(**rule, max_exclusions=1), said, rule).entries
        assert len(final) == 2
        assert final["id"].iloc[1] == last["id"]
        for name in ("occurrences", "average_influence"):
            assert final[name].iloc[1] == pytest.approx(last[name])
        assert list(final["affected_tests"].iloc[1]) == list(last["affected_tests"])


def test_a_list_of_which_all_is_kept_is_not_said_to_be_empty_for_want_of_harm(shell: Shell, run: Run) -> None:
    first = run.view().exclusions(threshold=float(THRESHOLD), max_exclusions=1).iloc[0]
    rule = ("generate-exclusions", "--run", run.id, "--threshold", THRESHOLD, "--max-exclusions", "1", "--output-file", "kept.txt")
    shell.place.decide(run, (first["id1"], first["id2"]), "keep", who="Mei")
    try:
        told = shell.here(*rule, "--verdicts")
        assert "People keep all that the rule lists" in told.stdout
        assert "Nothing does harm" not in told.stdout
        assert read_exclusions(shell.home / "kept.txt") == []
    finally:
        shell.place.decide(run, (first["id1"], first["id2"]), "none", who="Mei")


def test_what_is_no_number_in_a_score_file_is_named_and_does_no_harm(shell: Shell, run: Run) -> None:
    """A null where the most harmful pair stood takes one occurrence from it, and its key is on a line."""
    records = json.loads((shell.home / "meta" / "box_500hz_influence_metadata.json").read_text())
    worst = run.view().exclusions(threshold=float(THRESHOLD)).iloc[0]
    records[worst["id"]][f"tracin_influence_{worst['affected_tests'][0]}"] = None
    (shell.home / "holed.json").write_text(json.dumps(records))
    words = ("generate-exclusions", "--metadata-file", "holed.json", "--threshold", THRESHOLD, "--output-file", "holed.txt")
    refused = shell.here(*words)
    assert refused.returncode == 2
    assert "give the folder of the recordings" in refused.stderr
    answer = shell.here(*words, "--data-root", "recordings", "--verbose")
    assert (answer.returncode, answer.stderr) == (0, "")
    assert f"'tracin_influence_{worst['affected_tests'][0]}' of '{worst['id']}' is null, which counts as no harm\n" in answer.stdout
    assert f"{worst['id']}: {worst['occurrences'] - 1} occurrences" in answer.stdout


def test_score_files_are_a_run_that_verbs_can_be_asked_of(shell: Shell, run: Run) -> None:
    """What was computed, imported again: the same scores, no kernels, and a list that is the same."""
    files = [f"meta/box_500hz_{stem}.json" for stem in ("metadata", "influence_metadata")]
    told = shell.json("import", *files, "--data-root", "recordings", "--workspace", "imported")["runs"][0]
    assert (told["verdict"], told["lacks"], told["simulated"]) == ([], ["contributions"], True)
    assert told["highest_self_influence"][0]["self_influence"] == run.view().self_influence().max()
    words = ("generate-exclusions", "--threshold", THRESHOLD, "--output-file", "again.txt", "--workspace", "imported")
    entries = shell.json(*words)["entries"]
    assert [entry["id"] for entry in entries] == run.view().exclusions(threshold=float(THRESHOLD))["id"].tolist() != []
    table = shell.json("test-pair-exclusion", "--workspace", "imported", "--thresholds", THRESHOLD)["runs"][0]["thresholds"]
    assert table[0]["listed"] == len(entries)


def test_both_samples_are_pictured_and_marked(shell: Shell, run: Run) -> None:
    """`--consider-both-samples` is `full_pair`; each listed sample has its picture, and its record says so and keeps what it said."""
    records = {name: {"id": name, "angle": 0, "notes": "windy"} for name in run.samples["id"]}
    (shell.home / "samples.json").write_text(json.dumps(records))
    words = [
        "generate-exclusions",
        "--run",
        run.id,
        "--threshold",
        THRESHOLD,
        "--consider-both-samples",
        "--output-file",
        "both.txt",
    ]
    told = shell.json(
        *words, "--update-metadata", "--sample-metadata", "samples.json", "--plot-harmful-samples", "--plots-dir", "seen"
    )
    listed = [entry["id"] for entry in told["entries"]]
    assert listed == run.view().exclusions(threshold=float(THRESHOLD), pair_mode="full_pair")["id"].tolist() != []
    assert told["plots"] == [f"seen/{place:03d}_{sample}.png" for place, sample in enumerate(listed, start=1)]
    for sample, picture in zip(listed, told["plots"], strict=True):
        assert (shell.home / picture).read_bytes() == run.preview(sample).picture.read_bytes()
    marked = json.loads((shell.home / "samples.json").read_text())
    assert [name for name, record in marked.items() if record.get("excluded")] == [n for n in marked if n in set(listed)]
    assert all(marked[name]["notes"].startswith("windy\n") and marked[name]["tracin_info"] for name in listed)
    assert marked.keys() == records.keys()


def test_a_list_is_trained_without(shell: Shell, run: Run) -> None:
    shell.json("generate-exclusions", "--run", run.id, "--threshold", THRESHOLD, "--output-file", "list.txt")
    told = shell.json("train", "--run", run.id, "--exclusions-file", "list.txt", "--epochs", "1", "--batch-size", "64")
    assert told["exclusions"]["matched"] == read_exclusions(shell.home / "list.txt")
    assert told["train_pairs"] == len(run.train_pairs) - len(told["exclusions"]["matched"])
    assert (told["settings"]["batch_pairs"], told["settings"]["epochs"], told["simulated"]) == (64, 1, True)


@pytest.mark.parametrize("score", ["self_influence", "mean_loss"])
def test_suspect_examples_count_less_in_a_training_weighed_by_a_score(shell: Shell, run: Run, score: str) -> None:
    """The same training by hand, with median / score above the median; its analysis says that it was weighed."""
    told = shell.json("train", "--run", run.id, "--weight-by", score, "--epochs", "1", "--output-dir", f"weighed_{score}")
    view = run.view()
    values = view.self_influence() if score == "self_influence" else view.train.losses.mean(axis=0)
    weights = np.minimum(1, np.median(values) / np.maximum(values, 1e-300))
    pairs = [frozenset(ends) for ends in view.train_pairs[["id1", "id2"]].to_numpy()]
    less = {pair: weight for pair, weight in zip(pairs, weights, strict=True) if weight < 1}
    assert told["exclusions"]["weighted"] == len(less) > len(pairs) / 4
    inputs = read_inputs(shell.home / "recordings", run.samples)
    settings = {**told["settings"], "save_epochs": ()}
    by_hand = {"model": run.recipe.model, "task": run.recipe.task}
    train(inputs, run.samples, shell.home / f"by_hand_{score}", weights=less, **by_hand, **settings)
    folders = (shell.home / f"weighed_{score}", shell.home / f"by_hand_{score}")
    one, two = (torch.load(folder / "model_epoch_1.pt", weights_only=True) for folder in folders)
    assert (one["args"]["weighted_by"], "weighted_by" in two["args"]) == (score, False)
    for name, value in one["model_state_dict"].items():
        torch.testing.assert_close(value, two["model_state_dict"][name])
    analysed = shell.place.compute(Recipe.from_toml(Path(told["recipe"])))
    assert isinstance(analysed, Run)
    assert f"weighed its examples by {score}" in analysed.health().set_index("check").loc["weights", "detail"]
    assert any(score in name for name in settings_of(analysed)[1])


def test_weights_need_a_score_that_tells_examples_apart() -> None:
    np.testing.assert_allclose(weights_by([1.0, 2.0, 4.0]), [1, 1, 0.5])
    with pytest.raises(ViewError, match=r"Half of the 3 scores are 0 or less"):
        weights_by([0.0, 0.0, 5.0])


WHOLE = (*WHAT, "--frequencies", "500hz,1000hz", "--threshold", THRESHOLD, "--retrain", "--output-dir", "lists")


def test_the_whole_way_for_several_frequencies_is_gone_once(shell: Shell, computed: dict[str, Any]) -> None:
    """Started again it computes, lists and trains nothing anew, and tells the same; before is the run's own training."""
    first = shell.json("exclude-harmful-pairs", *WHOLE, process=True)
    jobs, exports = [job.id for job in shell.place.jobs(100)], sorted((shell.home / "workspace" / "exports").rglob("*"))
    assert shell.json("exclude-harmful-pairs", *WHOLE) == first
    assert [job.id for job in shell.place.jobs(100)] == jobs
    assert sorted((shell.home / "workspace" / "exports").rglob("*")) == exports
    assert [told["run"] for told in first["runs"]] == [told["run"] for told in computed["runs"]]
    for told, frequency in zip(first["runs"], ("500hz", "1000hz"), strict=True):
        listed = read_exclusions(shell.home / "lists" / f"box_{frequency}_exclusions.txt")
        assert listed == [entry["id"] for entry in told["entries"]] == told["retraining"]["left_out"] != []
        own = json.loads((shell.home / folder_of(frequency) / "training.json").read_text())
        before, after = told["retraining"]["before"], told["retraining"]["after"]
        assert {name: before[name] for name in ("validation_accuracy", "test_accuracy")} == {
            name: own[name] for name in ("validation_accuracy", "test_accuracy")
        }
        assert after["train_pairs"] == before["train_pairs"] - len(listed)
        retrained = json.loads(Path(after["folder"], "training.json").read_text())
        assert retrained["settings"] == own["settings"]  # the two differ in the list alone
        assert retrained["test_accuracy"] == after["test_accuracy"]


def test_people_read_what_changed_and_how_little_it_proves(shell: Shell) -> None:
    """All of it was done before, so nothing is watched."""
    answer = shell.here("exclude-harmful-pairs", *WHOLE)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert answer.stdout.count("Before: the run's own training.\n") == answer.stdout.count("Trained already: ") == 2
    assert len(re.findall(r"^change( +[+-]\d\.\d{3}){2}", answer.stdout, re.MULTILINE)) == 2
    assert answer.stdout.count("One retraining proves little") == 2


def test_other_settings_are_measured_against_a_training_with_them(shell: Shell, run: Run) -> None:
    """Before and after differ in the list alone, so what is before is trained as well."""
    told = shell.json("exclude-harmful-pairs", "--run", run.id, "--threshold", THRESHOLD, "--retrain", "--epochs", "1")
    before, after = (told["runs"][0]["retraining"][side] for side in ("before", "after"))
    assert before["train_pairs"] - after["train_pairs"] == len(told["runs"][0]["entries"]) > 0
    settings = [json.loads(Path(side["folder"], "training.json").read_text())["settings"] for side in (before, after)]
    assert settings[0] == settings[1]
    assert settings[0]["epochs"] == 1


def test_what_a_weighed_training_left_out_stays_out_of_the_comparison(shell: Shell, run: Run) -> None:
    """Its own training is not the one before, since nothing is weighed there; what it left out is left out again nevertheless."""
    listed = [f"{two}_{one}" for one, two in run.train_pairs[["id1", "id2"]].head(4).to_numpy()]  # the other way round
    (shell.home / "earlier.txt").write_text("\n".join(listed))
    asked = ("--exclusions-file", "earlier.txt", "--weight-by", "mean_loss", "--epochs", "1", "--output-dir", "weighed_without")
    told = shell.json("train", "--run", run.id, *asked)
    own = shell.place.compute(Recipe.from_toml(Path(told["recipe"])))
    assert isinstance(own, Run)
    compared = shell.json("exclude-harmful-pairs", "--run", own.id, "--threshold", THRESHOLD, "--retrain", "--epochs", "1")
    assert compared["runs"][0]["retraining"]["before"]["train_pairs"] == len(run.train_pairs) - len(listed)


def test_a_training_that_was_interrupted_goes_on_as_its_job(shell: Shell, run: Run) -> None:
    words = command("exclude-harmful-pairs", "--run", run.id, "--threshold", THRESHOLD, "--retrain", "--epochs", "50000")
    cut = []
    for _ in range(2):
        watching = subprocess.Popen(
            words, cwd=shell.home, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
        )
        assert watching.stdout is not None
        assert any(line.endswith(": training\n") for line in watching.stdout)
        cut += [job.id for job in shell.place.jobs(100) if job.is_live]
        shell.place.cancel(cut[-1])
        _, said = watching.communicate(timeout=PATIENCE)
        assert (watching.returncode, said.count("\n")) == (1, 1)
        assert "was cancelled" in said
    assert cut[0] == cut[1]
    assert len([job for job in shell.place.jobs(100) if job.request.get("settings", {}).get("epochs") == 50000]) == 1


# ---- what is asked for ----------------------------------------------------------------------------------------------------------


def analysis(shell: Shell, **options: Any) -> Analysis:
    places = {"data_root": shell.home / "recordings", "checkpoint_dir": shell.home / "checkpoints"}
    return Analysis(**{"material": "box", "frequency": "500hz", **places, **options})


def test_flags_decide_the_recipe(shell: Shell) -> None:
    asked = analysis(
        shell, loss_type="ghm", margin=2.0, ghm_bins=5, ghm_alpha=0.5, num_test_samples=7, seed=3, batch_size=8, device="cpu"
    )
    (recipe,) = recipes_of(asked)
    assert recipe.to_dict()["task"] == {
        "kind": "ranking", "loss": "ghm", "margin": 2.0, "ghm_bins": 5, "ghm_alpha": 0.5, "test_pairs": 7, "test_seed": 3,
    }  # fmt: skip
    assert (recipe.engine.batch_size, recipe.engine.device, recipe.data.title) == (8, "cpu", "box 500hz")
    assert recipe.checkpoints.folder == shell.home / folder_of("500hz")


def test_each_device_has_its_own_batch_unless_one_is_chosen(shell: Shell) -> None:
    """Passes of 32 samples leave an accelerator idle: 512 are six times as fast on an H100 (benchmarks/README.md)."""
    batches = {}
    for device, chosen in product(("cpu", "cuda"), (None, 8)):
        (recipe,) = recipes_of(analysis(shell, device=device, batch_size=chosen))
        batches[device, chosen] = recipe.engine.batch_size
    assert batches == {("cpu", None): 32, ("cpu", 8): 8, ("cuda", None): 512, ("cuda", 8): 8}
    (recipe,) = recipes_of(analysis(shell, device="cpu"))
    assert on_device(recipe, "cuda").engine.batch_size == 512
    (recipe,) = recipes_of(analysis(shell, device="cpu", batch_size=8))
    assert recipe.engine.precondition == "none"
    assert recipes_of(analysis(shell, precondition="adam_full"))[0].engine.precondition == "adam_full"
    assert on_device(recipe, "cuda").engine.batch_size == 8


def test_a_seed_decides_which_test_pairs(run: Run) -> None:
    everything = run.test_pairs
    for seed in (None, 5):
        settings = {**run.manifest.recipe, "task": {**run.manifest.recipe["task"], "test_pairs": 6}}
        run.recipe = type(run.recipe).from_dict(settings | {"task": {**settings["task"], **({"test_seed": seed} if seed else {})}})
        run.__dict__.pop("test_pairs")
        assert run.test_pairs["id"].tolist() == stratified_pairs(everything, 6, seed=seed or 0)["id"].tolist()
    run.recipe = type(run.recipe).from_dict(run.manifest.recipe)
    run.__dict__.pop("test_pairs")


def test_all_is_one_analysis_where_one_model_saw_all(shell: Shell) -> None:
    """Checkpoints in the folder itself are of one model; below it, of one per frequency."""
    inside = shell.home / folder_of("500hz")
    assert [r.data.title for r in recipes_of(analysis(shell, frequency="all", checkpoint_dir=inside))] == ["box all"]
    assert [r.data.title for r in recipes_of(analysis(shell, frequency="all"))] == ["box 500hz", "box 1000hz"]


def test_of_several_trainings_the_one_written_last_is_taken_and_named(shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    older = shell.home / "checkpoints" / "box_500hz_standard_20270101_000000"
    older.mkdir()
    (older / "model_epoch_1.pt").touch()
    os.utime(older / "model_epoch_1.pt", (0, 0))
    assert recipes_of(analysis(shell))[0].checkpoints.folder == shell.home / folder_of("500hz")
    assert f"the one written last is taken: {Path(folder_of('500hz')).name}" in capsys.readouterr().out
    shutil.rmtree(older)


def test_what_changes_nothing_says_so(shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    recipes = recipes_of(analysis(shell, num_workers=8, seed=9))
    assert recipes == recipes_of(analysis(shell))
    told = capsys.readouterr().out
    assert "--num-workers 8 changes nothing" in told
    assert "--seed 9 changes nothing" in told


def test_a_material_that_is_not_there_is_told_with_those_that_are(shell: Shell) -> None:
    with pytest.raises(InputError, match=r"no recordings of 'plastic' \(it has box\)"):
        recipes_of(analysis(shell, material="plastic", frequency="all"))


def test_no_default_is_somebodys_home_folder() -> None:
    source = "".join(path.read_text() for path in (Path(__file__).parents[1] / "tracin_core" / "cli").glob("*.py"))
    assert not re.search(r"/home/|/Users/|expanduser|Path\.home", source)
    assert Rule().settings() == {"threshold": -5.0, "min_occurrences": 3, "max_exclusions": 50, "pair_mode": "ranking_pair"}
    assert numbers("-5.0,-10.0,-15.0") == [-5.0, -10.0, -15.0]


def test_other_settings_than_recorded_are_said(shell: Shell, computed: dict[str, Any]) -> None:
    told = shell.json("compute-influence", *WHAT, "--frequency", "500hz", "--margin", "1", "--num-test-samples", "5")["runs"][0]
    assert told["differences"] == ["The scores are under margin 1, as asked for; the checkpoints record margin 10."]
    assert told["test"] == 5
    assert told["run"] != computed["runs"][0]["run"]


# ---- machines, terminals, errors ------------------------------------------------------------------------------------------------


def test_every_verb_that_reports_tells_a_machine(shell: Shell, run: Run) -> None:
    """One document on stdout, whatever lines people would get."""
    assert shell.json("doctor").keys() == {"passed", "findings"}
    assert shell.json("verify")["damages"] == []
    assert shell.json("access", "list") == {"people": []}
    report = shell.json("report", run.id, "-o", "report.md", "--language", "zh-TW")
    assert report == {"run": run.id, "report": "report.md", "language": "zh-TW", "simulated": True}
    assert run.id in (shell.home / "report.md").read_text()


REFUSED = {
    "a wrong command": (("test-pair-exclusion", "--thresholds", "-5,x"), 2, "'-5,x' is not a list of numbers such as -5.0,-10.0"),
    "a threshold above 0": (("test-pair-exclusion", "--thresholds=5"), 2, "5 is no threshold; harm is a negative influence"),
    "an empty place": (("test-pair-exclusion", "--thresholds=-5,,-6"), 2, "nothing before, after or between some of its commas"),
    "run and analysis": (("test-pair-exclusion", "--run", "x", "--material", "box"), 2, "leave out --material, or --run"),
    "two modes": (
        ("generate-exclusions", "--output-file", "x", "--pair-mode", "sample", "--consider-both-samples"),
        2,
        "leave it out, or --pair-mode sample",
    ),
    "nothing to mark": (("exclude-harmful-pairs", "--update-metadata"), 2, "give --sample-metadata FILE"),
    "no such file": (("generate-exclusions", "--output-file", "x", "--metadata-file", "gone.json"), 2, "'gone.json' is not there"),
    "self-influence only": (
        ("generate-exclusions", "--output-file", "x", "--metadata-file", "meta/box_500hz_metadata.json"),
        2,
        "harm is an influence on tests; give the file whose name ends in",
    ),
    "two frequencies": (
        ("exclude-harmful-pairs", *WHAT, "--frequency", "500hz", "--frequencies", "500hz"),
        2,
        "leave out --frequency",
    ),
    "a name of no kind": (("import", "meta/box_500hz_scores.json"), 2, "'box_500hz_scores.json' ends in none of"),
    "one kind twice": (
        ("import", "a_metadata.json", "b_metadata.json"),
        2,
        "'b_metadata.json' is of one kind with 'a_metadata.json'",
    ),
    "a report of no form": (("report", "-o", "report.pdf"), 2, "'report.pdf'; give the file one of these endings"),
}


@pytest.mark.usefixtures("computed")
@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_is_one_sentence_and_one_document(shell: Shell, case: str) -> None:
    words, code, told = REFUSED[case]
    answer = shell.here(*words, "--json")
    assert re.search(re.escape(told), answer.stderr), answer.stderr
    assert (answer.returncode, answer.stderr.count("\n")) == (code, 1)
    document = json.loads(answer.stdout)
    assert (answer.stderr, document["exit_code"]) == (f"Error: {document['error']}\n", code)


def test_debug_shows_where_an_error_comes_from(shell: Shell) -> None:
    plain = shell.here("generate-exclusions", "--run", "gone", "--output-file", "x")
    debug = shell.here("generate-exclusions", "--run", "gone", "--output-file", "x", "--debug")
    assert plain.returncode == debug.returncode == 2
    assert "Traceback" not in plain.stderr
    assert debug.stderr.startswith("Traceback")
    assert debug.stderr.endswith(plain.stderr)


def test_a_terminal_gets_a_bar(shell: Shell, run: Run) -> None:
    """Drawn and drawn over, where a pipe gets a line per step."""
    leader, follower = pty.openpty()
    words = command("train", "--run", run.id, "--epochs", "2")
    with subprocess.Popen(words, cwd=shell.home, env={**ENVIRONMENT, "TERM": "xterm"}, stdout=follower, stderr=follower) as process:
        os.close(follower)
        seen = b""
        try:
            while part := os.read(leader, 4096):
                seen += part
        except OSError:  # the other end is closed
            pass
        assert process.wait(PATIENCE) == 0, seen.decode()
    os.close(leader)
    assert "━" in seen.decode()
    assert b"\x1b[" in seen
