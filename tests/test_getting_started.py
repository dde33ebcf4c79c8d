"""Whoever types what docs/getting-started.md shows, on recordings and checkpoints of their own, has an exclusion list."""

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import lab
import numpy as np
import pytest
import soundfile
from shell import Shell

from tracin_core.data.readers import list_recordings, read_inputs, reader_for
from tracin_core.data.samples import split_samples
from tracin_core.recipe import Recipe, SplitSection
from tracin_core.records.interchange import read_exclusions

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "getting-started.md").read_text(encoding="utf-8")
OURS = [".venv/bin/python", "-m", "tracin_core"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """The reader's files: short sounds of three angles, a few in the wrong folder, and checkpoints that a training left."""
    from tracin_core.engine.training import train_ranker

    place = tmp_path_factory.mktemp("reader")
    recordings = write_recordings(place / "recordings")
    samples = split_samples(list_recordings(recordings, "box", "1000hz"), SplitSection())
    folder = place / "checkpoints" / "box_1000hz_standard"
    train_ranker(read_inputs(recordings, samples), samples, folder, epochs=3, save_epochs=(1, 3), learning_rate=0.1)
    yield Shell(place)
    lab.stop_worker(Shell(place).place)


def write_recordings(root: Path) -> Path:
    """The higher the angle, the louder the noise beside a tone; takes 0 to 3 of the first and the last angle are exchanged."""
    generator = np.random.default_rng(3)
    time = np.arange(8192) / 48_000
    for angle, level in (("deg000", 0.001), ("deg036", 0.03), ("deg072", 0.3)):
        (root / angle / "box").mkdir(parents=True)
        for take in range(20):
            loudness = {0.001: 0.3, 0.3: 0.001}.get(level, level) if take < 4 else level
            wave = 0.2 * np.sin(2 * np.pi * 1000 * time) + loudness * generator.normal(size=len(time))
            soundfile.write(root / angle / "box" / f"box_{angle}_1000hz_{take:02d}.wav", wave, 48_000)
    return root


def commands() -> list[list[str]]:
    """What the document has the reader type, in its order."""
    blocks = re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.replace("\\\n", " ").splitlines()]


def test_every_command_of_the_document_succeeds_and_the_list_is_there(home: Shell) -> None:
    typed = commands()
    ours = [words[3:] for words in typed if words[:3] == OURS]
    verbs = ["inspect", "compute-influence", "report", "test-pair-exclusion", "generate-exclusions", "train"]
    assert [words[0] for words in ours] == verbs
    for words in ours:
        answer = home.here(*words)
        assert (answer.returncode, answer.stderr) == (0, ""), f"{shlex.join(words)}\n{answer.stdout}{answer.stderr}"
    listed = read_exclusions(home.home / "exclusions.txt")
    assert 0 < len(listed) <= 50
    for name in ("exclusions.provenance.json", "report.html", "checkpoints/box_1000hz_without/model_epoch_2.pt"):
        assert (home.home / name).is_file(), name


def test_what_else_is_typed_is_a_target_of_make() -> None:
    """Installing and serving have tests of their own; here it is enough that the words are right."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    others = [words for words in commands() if words[:3] != OURS]
    assert [words[-2] for words in others] == ["make", "make"]
    assert {words[-1] for words in others} <= targets


def test_the_recipe_of_the_document_splits_the_readers_recordings(home: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home.home)
    (block,) = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)
    recipe = Recipe.from_dict(tomllib.loads(block))
    samples = split_samples(reader_for(recipe.data).list(), recipe.split)
    assert samples["split"].value_counts()["train"] == 5 * samples["angle"].nunique()
    assert recipe.checkpoints.folder.is_dir()
