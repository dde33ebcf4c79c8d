"""The path through the shell, as a user types it: real processes, a real worker, real files; and what is said when it cannot go on."""

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import lab
import numpy as np
import pytest
import soundfile
import torch
from shell import ENVIRONMENT, PATIENCE, Shell, command

from tracin_core.data.readers import list_recordings, read_inputs
from tracin_core.data.samples import all_pairs, split_samples
from tracin_core.engine.training import train_ranker
from tracin_core.recipe import Recipe, SplitSection
from tracin_core.records.interchange import read_exclusions
from tracin_core.records.runs import Run

ROOT = Path(__file__).resolve().parents[1]
MANUAL = ROOT / "docs" / "command-line.md"
COMMANDS = (
    "demo",
    "compute-influence",
    "test-pair-exclusion",
    "generate-exclusions",
    "train",
    "exclude-harmful-pairs",
    "import",
    "report",
    "serve",
    "inspect",
    "export-zarr",
    "verify",
    "gc",
    "rebuild-catalogue",
    "doctor",
)
DEMO_PATIENCE = 600
RANDOM = SplitSection(rule="random")
FOUND = ["--threshold", "-0.5"]  # some harm is below it in the small lab


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """A small lab: recordings, checkpoints of three epochs, the recipe of their analysis."""
    home = tmp_path_factory.mktemp("shell")
    lab.train_small(lab.make_recordings(home / "recordings"), home / "checkpoints", epochs=2)
    (home / "analysis.toml").write_text(lab.recipe_for(home / "recordings", home / "checkpoints").to_toml())
    yield Shell(home)
    lab.stop_worker(Shell(home).place)


@pytest.fixture(scope="module")
def run(shell: Shell) -> Run:
    """The run that `compute-influence` made and named."""
    answer = shell("compute-influence", "--recipe", "analysis.toml")
    assert (answer.returncode, answer.stderr) == (0, "")
    assert "3 checkpoints, loss margin, margin 10, summed over epochs [1, 2]" in answer.stdout
    named = re.search(r"^Run (\w+): small lab \[SIMULATED data\]$", answer.stdout, re.MULTILINE)
    assert named is not None
    assert f"Next: {sys.executable} -m tracin_core generate-exclusions --workspace workspace --run {named[1]}" in answer.stdout
    return shell.place.run(named[1])


def ids(run: Run, side: str) -> list[str]:
    return run.splits[side]["id"].tolist()


# ---- the path -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_an_example_and_the_manual_names_every_option(shell: Shell, name: str) -> None:
    answer = shell(name, "--help")
    assert (answer.returncode, answer.stderr) == (0, "")
    assert f"Example: python -m tracin_core {name} --" in " ".join(answer.stdout.split())
    options = set(re.findall(r"^  (--[a-z-]+)", answer.stdout, re.MULTILINE)) - {"--help", "--workspace", "--json"}
    sections = {part.partition("\n")[0]: part for part in MANUAL.read_text().split("\n## ")}
    told = sections[name] + "".join(sections[other] for other in re.findall(r"\(#([a-z-]+)\)", sections[name]))
    assert options == {option for option in options if f"`{option}`" in told}
    assert ("--json" in answer.stdout) == (name != "serve")


@pytest.mark.usefixtures("refusals")  # answered in the background while the path is walked
@pytest.mark.parametrize("mode", ["ranking_pair", "full_pair", "sample"])
def test_a_list_is_what_the_view_chooses(shell: Shell, run: Run, mode: Any) -> None:
    """The same ids in the same order, their number said, simulated data named as such, and the provenance beside the list."""
    answer = shell(
        "generate-exclusions", *FOUND, "--max-exclusions", "7", "--pair-mode", mode, "--output-file", f"lists/{mode}.txt"
    )
    assert (answer.returncode, answer.stderr) == (0, "")
    chosen = run.view().exclusions(threshold=-0.5, min_occurrences=3, max_exclusions=7, pair_mode=mode)
    listed = shell.home / "lists" / f"{mode}.txt"
    assert read_exclusions(listed) == chosen["id"].tolist() != []
    kind = "pairs" if mode == "ranking_pair" else "samples"
    assert f"{len(chosen)} {kind} listed in lists/{mode}.txt [SIMULATED data]\n" in answer.stdout
    assert f"train --workspace workspace --run {run.id} --exclusions-file lists/{mode}.txt\n" in answer.stdout
    assert "# SIMULATED data" in listed.read_text()
    provenance = json.loads(listed.with_suffix(".provenance.json").read_text())
    assert (provenance["run"], provenance["rule"]["pair_mode"]) == (run.id, mode)
    assert [entry["id"] for entry in provenance["entries"]] == chosen["id"].tolist()


def test_nothing_found_is_an_empty_list_and_a_threshold_that_finds_something(shell: Shell, run: Run) -> None:
    answer = shell("generate-exclusions", "--run", run.id, "--threshold", "-1e9", "--output-file", "empty.txt")
    assert (answer.returncode, answer.stderr) == (0, "")
    assert "0 pairs listed in empty.txt" in answer.stdout
    assert read_exclusions(shell.home / "empty.txt") == []
    assert "# entries: 0\n" in (shell.home / "empty.txt").read_text()
    suggested = re.search(r"try --threshold (\S+)$", answer.stdout, re.MULTILINE)
    assert suggested is not None
    assert not run.view().exclusions(threshold=float(suggested[1])).empty


def test_training_leaves_out_what_the_list_names_and_keeps_the_split(shell: Shell, run: Run) -> None:
    """Samples and pairs in either order leave the training side; what matched is counted, what did not is named."""
    pair = run.train_pairs.iloc[-1]
    sample, held_out = ids(run, "train")[0], ids(run, "validation")[0]
    assert sample not in (pair["id1"], pair["id2"])
    lines = ["# mine", sample, f"{pair['id2']}_{pair['id1']}", held_out, "nobody", f"{sample}_nobody"]
    (shell.home / "mine.txt").write_text("\n".join(lines))
    splits = stored_splits(shell, run)
    answer = shell("train", "--run", run.id, "--exclusions-file", "mine.txt", "--epochs", "2", "--output-dir", "retrained")
    assert (answer.returncode, answer.stderr) == (0, "")
    assert "Exclusions: 2 of 5 lines of mine.txt matched\n" in answer.stdout
    assert f"Not in this data set, so check their spelling: 2 (nobody, {sample}_nobody)\n" in answer.stdout
    assert f"Not on the training side, so left as they are: 1 ({held_out})\n" in answer.stdout
    assert "Left out of training: 1 samples with all their pairs, and 1 other pairs\n" in answer.stdout
    assert f"Checkpoints: {shell.home / 'retrained'} [SIMULATED data]\n" in answer.stdout
    kept = run.train_pairs[(run.train_pairs["id1"] != sample) & (run.train_pairs["id2"] != sample)]
    assert f"18 train, 12 validation, 6 test samples; trained on 17 samples in {len(kept) - 1} pairs" in answer.stdout
    assert stored_splits(shell, run) == splits != {}
    assert sorted(path.name for path in (shell.home / "retrained").glob("*.pt")) == [
        f"model_epoch_{epoch}.pt" for epoch in (0, 1, 2)
    ]
    content = torch.load(shell.home / "retrained" / "model_epoch_2.pt", weights_only=True)
    assert (content["args"]["exclusions_file"], content["args"]["margin"]) == ("mine.txt", 10.0)
    assert (
        f"Next: {sys.executable} -m tracin_core compute-influence --workspace workspace --recipe {shell.home}/retrained/analysis.toml\n"
        in answer.stdout
    )
    analysis = Recipe.from_toml(shell.home / "retrained" / "analysis.toml")
    assert (analysis.checkpoints.folder, analysis.name) == (shell.home / "retrained", f"{run.name}, retrained")
    assert (analysis.data, analysis.split, analysis.simulated) == (run.recipe.data, run.recipe.split, True)


def stored_splits(shell: Shell, run: Run) -> dict[str, bytes]:
    folder = shell.home / "workspace" / "datasets" / run.manifest.dataset
    return {path.name: path.read_bytes() for path in folder.glob("split-*.json")}


def test_training_follows_its_run(shell: Shell, run: Run) -> None:
    """Data, split, layout, loss and margin are the run's, not the defaults and not another run's; an empty list takes nothing away."""
    recipe = other_lab(shell.home)
    computed = shell("compute-influence", "--recipe", "other.toml", "--workspace", "workspace")
    assert computed.returncode == 0, computed.stderr
    other = shell.place.run(shell.place.run_id(recipe))
    (shell.home / "nothing.txt").write_text("# an empty list\n")
    answer = shell("train", "--run", other.id, "--epochs", "1", "--exclusions-file", "nothing.txt")
    assert answer.returncode == 0, answer.stderr
    assert "Exclusions: 0 of 0 lines of nothing.txt matched\n" in answer.stdout
    folder = re.search(r"^Checkpoints: (.*/trainings/SIMULATED_box_1000hz_logistic_\d+_\d+_\d+) ", answer.stdout, re.MULTILINE)
    assert folder is not None
    trained = json.loads(Path(folder[1], "training.json").read_text())
    assert trained["split"] == {"train": 8, "validation": 4, "test": 0}
    assert trained["train_pairs"] == len(all_pairs(other.splits["train"])) != len(run.train_pairs)
    assert {name: trained["settings"][name] for name in ("layout", "loss", "margin")} == {
        "layout": "large_resized",
        "loss": "logistic",
        "margin": 3.0,
    }
    assert f"Pair accuracy on the validation side: {trained['validation_accuracy']:.3f}\n" in answer.stdout


def other_lab(home: Path) -> Recipe:
    """Fewer and longer recordings; another layout; the lab's random split; another loss."""
    shutil.copytree(home / "recordings", home / "long")
    for path in (home / "long").rglob("*.wav"):
        if path.stem.endswith(("2", "3", "4", "5")):
            path.unlink()
            continue
        wave, rate = soundfile.read(path)
        soundfile.write(path, np.tile(wave, 2), rate, subtype="PCM_16")
    samples = split_samples(list_recordings(home / "long", lab.MATERIAL, lab.FREQUENCY), RANDOM)
    settings: dict[str, Any] = {"epochs": 0, "layout": "large_resized", "loss": "logistic", "margin": 3.0}
    train_ranker(read_inputs(home / "long", samples), samples, home / "others", **settings)
    known = lab.recipe_for(home / "long", home / "others").to_dict()
    recipe = Recipe.from_dict({**known, "model": {"layout": "large_resized"}, "split": RANDOM.model_dump()})
    (home / "other.toml").write_text(recipe.to_toml())
    return recipe


def test_ctrl_c_ends_the_watching_not_the_job(shell: Shell, run: Run) -> None:
    words = command("train", "--run", run.id, "--epochs", "5000")
    watching = subprocess.Popen(
        words, cwd=shell.home, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which is off where the tests run in the background
    )  # fmt: skip
    try:
        assert watching.stdout is not None
        assert any(line.endswith(": training\n") for line in watching.stdout)
        watching.send_signal(signal.SIGINT)
        _, said = watching.communicate(timeout=PATIENCE)
        named = re.fullmatch(r"No longer watching: job (\w+) goes on in the background; the dashboard shows it \(.*\)\.\n", said)
        assert named is not None, said
        before = shell.place.job(named[1])
    finally:
        watching.kill()
        shell.place.cancel(shell.place.jobs()[0].id)
    assert (before.kind, before.state, watching.returncode) == ("training", "running", 130)


# ---- bad input ------------------------------------------------------------------------------------------------------------------

COMPUTE = ("compute-influence", "--material", "box", "--frequency", "1000hz", "--data-root", "recordings", "--checkpoint-dir")
EXCLUDE = ("generate-exclusions", "--output-file", "refused.txt")

# Two families: 2, the command or a file it names is wrong and nothing was started; 1, the work failed.
REFUSALS: dict[str, tuple[tuple[str, ...], int, str]] = {
    "no folder": ((*COMPUTE, "gone"), 2, "checkpoint folder 'gone' cannot be read .* choose another folder"),
    "an empty folder": ((*COMPUTE, "bare"), 2, "'bare' has no file named 'model_epoch_<epoch>.pt' .* choose another folder"),
    "too few takes": ((*COMPUTE, "checkpoints"), 1, r"asks for 10 \+ 4 \+ 6 takes, but the recordings have 6"),
    "another model": (("compute-influence", "--recipe", "mismatch.toml"), 1, "model_epoch_0.pt.*features.*features.*features"),
    "not plain weights": (("compute-influence", "--recipe", "hostile.toml"), 1, "model_epoch_1.pt"),
    "a damaged recording": (
        ("compute-influence", "--recipe", "damaged.toml"),
        1,
        "'box_deg036_1000hz_01.wav' cannot be read .* move it away",
    ),
    "one angle": (
        ("compute-influence", "--recipe", "one-angle.toml"),
        2,
        "at least two different angles, .* only the angle 0°; choose",
    ),
    "no recipe": (("compute-influence", "--recipe", "gone.toml"), 2, "'gone.toml' cannot be read .* check the path"),
    "recipe and flags": (
        ("compute-influence", "--recipe", "analysis.toml", "--layout", "large"),
        2,
        "leave out --layout, or --recipe",
    ),
    "too little said": (COMPUTE[:3], 2, "give --checkpoint-dir, --data-root, --frequency, or --recipe"),
    "a negative margin": ((*COMPUTE, "checkpoints", "--margin", "-1"), 2, "'--margin'.* greater than or equal to 0 .*--help"),
    "an infinite margin": (("train", "--margin", "inf"), 2, "'--margin': inf is not a finite number .*--help"),
    "no such loss": ((*COMPUTE, "checkpoints", "--loss-type", "hinge2"), 2, "no loss 'hinge2'; choose from standard, .*ghm"),
    "harm above 0": ((*EXCLUDE, "--threshold", "1"), 2, "'--threshold'.* less than or equal to 0 .*--help"),
    "no occurrence": ((*EXCLUDE, "--min-occurrences", "0"), 2, "'--min-occurrences'.* greater than or equal to 1 .*--help"),
    "no such mode": ((*EXCLUDE, "--pair-mode", "triple"), 2, "'triple' is not one of 'ranking_pair', 'full_pair', 'sample'"),
    "no such run": ((*EXCLUDE, "--run", "gone"), 2, "no run 'gone' in this workspace; choose one"),
    "no run yet": ((*EXCLUDE, "--workspace", "fresh"), 2, "no finished run in this workspace; start one with compute-influence"),
    "nowhere to write": (
        ("generate-exclusions", "--output-file", "analysis.toml/list.txt"),
        2,
        r"'analysis.toml/list.txt' cannot be written .* kept as '.*/exports/.*\.txt': copy it from there, or give another --output-file",
    ),
    "a file for a workspace": (
        (*EXCLUDE, "--workspace", "analysis.toml"),
        2,
        "'analysis.toml' cannot be made .*; choose a directory",
    ),
    "no list": (
        ("train", "--exclusions-file", "gone.txt"),
        2,
        "'gone.txt' cannot be read .* choose a text file with one id per line",
    ),
    "a list that is no text": (("train", "--exclusions-file", "utf16.txt"), 2, "'utf16.txt' cannot be read .*not UTF-8"),
    "another data set's list": (
        ("train", "--exclusions-file", "stranger.txt"),
        2,
        "None of the list's 1 lines .* 'plastic_deg000_500hz_00' for one; choose the list",
    ),
    "everything excluded": (
        ("train", "--exclusions-file", "all.txt"),
        1,
        r"\d+ of the \d+ training samples are excluded, which leaves (only the angle 0°|no sample); exclude fewer",
    ),
    "checkpoints there already": (
        ("train", "--output-dir", "checkpoints"),
        2,
        "is in use already .*model_epoch_0.pt.*; choose a new one",
    ),
    "no place for checkpoints": (
        ("train", "--output-dir", "analysis.toml/new"),
        2,
        "analysis.toml/new' cannot be used .*; choose one",
    ),
    "the open network": (("serve", "--host", "0.0.0.0"), 2, r"does not listen on '0\.0\.0\.0'; use 127\.0\.0\.1"),
    "no such command": (("analyse",), 2, "No such command 'analyse'.*--help"),
}


Answer = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def refusals(shell: Shell, run: Run) -> Iterator[dict[str, Future[Answer]]]:
    """What each of the commands above answers, once it does; two at a time."""
    spoil(shell.home, run)
    with ThreadPoolExecutor(2) as pool:
        yield {case: pool.submit(shell, *words) for case, (words, _, _) in REFUSALS.items()}


def spoil(home: Path, run: Run) -> None:
    """The files that the refused commands name."""
    (home / "bare").mkdir()
    (home / "hostile").mkdir()
    (home / "hostile" / "model_epoch_1.pt").write_bytes(b"cos\nsystem\n(S'touch " + str(home / "executed").encode() + b"'\ntR.")
    for name in ("damaged", "one-angle"):
        shutil.copytree(home / "recordings", home / name)
    (home / "damaged" / "deg036" / "box" / "box_deg036_1000hz_01.wav").write_bytes(b"RIFF not a recording")
    for folder in sorted((home / "one-angle").glob("deg*"))[1:]:
        shutil.rmtree(folder)
    recipes = {
        "mismatch": {"model": {"layout": "large"}},
        "hostile": {"checkpoints": {"folder": home / "hostile"}},
        **{name: {"data": {**run.recipe.data.model_dump(), "root": home / name}} for name in ("damaged", "one-angle")},
    }
    for name, change in recipes.items():
        (home / f"{name}.toml").write_text(Recipe.from_dict({**run.recipe.to_dict(), **change}).to_toml())
    (home / "utf16.txt").write_text("box_deg000_1000hz_00", encoding="utf-16")
    (home / "stranger.txt").write_text("plastic_deg000_500hz_00\n")
    (home / "all.txt").write_text("\n".join(name for name in run.samples["id"] if "deg000" not in name))


@pytest.mark.parametrize("case", REFUSALS)
def test_a_refusal_is_one_sentence_with_the_next_step(refusals: dict[str, Future[Answer]], case: str) -> None:
    _, code, told = REFUSALS[case]
    answer = refusals[case].result()
    assert re.search(told, answer.stderr), answer.stderr
    assert answer.stderr.startswith("Error: ")
    assert answer.stderr.count("\n") == 1
    assert "Traceback" not in answer.stdout + answer.stderr
    assert "unforeseen" not in answer.stderr
    assert answer.returncode == code


def test_a_refused_checkpoint_was_not_executed(shell: Shell, refusals: dict[str, Future[Answer]]) -> None:
    assert refusals["not plain weights"].result().returncode == 1
    assert not (shell.home / "executed").exists()


def test_serve_says_when_its_port_is_taken(shell: Shell) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        answer = shell("serve", "--port", str(port))
    assert answer.returncode == 2
    assert re.fullmatch(
        rf"Error: Port {port} of 127\.0\.0\.1 cannot be used \(Address.* in use\); .* --port or TRACIN_PORT\.\n", answer.stderr
    )


# ---- the demo -------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_demo_is_a_finished_run_of_a_ranker_that_ranks(tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    started = time.monotonic()
    answer = shell("demo", patience=DEMO_PATIENCE)
    print(f"demo: {time.monotonic() - started:.0f} s\n{answer.stdout}")
    lab.stop_worker(shell.place)
    assert (answer.returncode, answer.stderr) == (0, "")
    (run,) = (shell.place.run(run_id) for run_id in shell.place.runs().query("state == 'done'")["id"])
    assert f"Run {run.id}: SIMULATED box 1000hz [SIMULATED data]\n" in answer.stdout
    assert run.health()["passed"].all()
    assert run.checkpoints["epoch"].tolist() == [0, 2, 5, 8, 12, 16, 20]
    accuracy = re.search(r"Pair accuracy on the test side: (\S+)", answer.stdout)
    assert accuracy is not None
    assert float(accuracy[1]) >= 0.85
