"""`inspect`: one line per file, told without a workspace, and the layouts that a file may be of."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile_files import Call, saved
from intake_child import standing
from torch import nn
from typer.testing import CliRunner

from tracin_core import cli
from tracin_core.cli import computing
from tracin_core.engine import checkpoints, inspection
from tracin_core.engine.checkpoints import Checkpoint, inspect_files, intake_folder
from tracin_core.engine.inspection import layers_of, models_asked, told
from tracin_core.engine.models import Ranker
from tracin_core.errors import CheckpointError, CheckpointMismatchError
from tracin_core.recipe import RankerModel

ROOT = Path(__file__).resolve().parents[1]
RECIPE = """
[model]
kind = "mlp"
inputs = 3
hidden = []
[data]
root = "recordings"
material = "box"
frequency = "500hz"
[checkpoints]
folder = "."
"""


@pytest.fixture(scope="module", autouse=True)
def child() -> Iterator[None]:
    """One child reads the files of all tests that do not go through the shell."""
    with standing() as one, pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "child", one.child)
        yield


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    small, large, mlp = Ranker("small"), Ranker("large"), Mlp3()
    settings = {"param_groups": [{"lr": 0.025}], "state": {}}
    contents = {
        "small_3.pt": {"epoch": 3, "model_state_dict": small.state_dict(), "optimizer_state_dict": settings},
        "large_4.pt": {"state_dict": {f"model.{name}": value for name, value in large.state_dict().items()}},
        "mlp_5.pt": mlp.state_dict(),
        "call_6.pt": Call(os.system, f"touch {folder / 'executed'}"),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(saved(content))
    (folder / "link_7.pt").symlink_to(folder / "small_3.pt")
    (folder / "analysis.toml").write_text(RECIPE)
    return folder


def Mlp3() -> nn.Module:
    return inspection.build_model(inspection.MODEL_FORMS.validate_python({"kind": "mlp", "inputs": 3, "hidden": []}), None)


def shell(*words: str, at: Path) -> "subprocess.CompletedProcess[str]":
    environment = {**{k: v for k, v in os.environ.items() if not k.startswith("TRACIN_")}, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tracin_core", "inspect", *words]
    return subprocess.run(command, cwd=at, env=environment, capture_output=True, text=True, timeout=300)


# ---- in the shell -----------------------------------------------------------------------------------------------------------


def test_a_line_per_file_and_one_refusal_is_exit_code_1(files: Path) -> None:
    before = sorted(path.name for path in files.iterdir())
    names = ("small_3.pt", "large_4.pt", "mlp_5.pt", "call_6.pt", "link_7.pt", f"../{files.name}/small_3.pt")
    answer = shell(*names, at=files)
    small, large, mlp, call, link, again = answer.stdout.splitlines()
    assert (answer.returncode, answer.stderr) == (1, "")
    digest = re.search(r"digest (\w{12}), fits the layout 'small'$", small)
    assert digest
    assert small == (
        f"accepted: 'small_3.pt': epoch 3, learning rate 0.025, 5,733 parameters in 6 layers, float32, digest {digest[1]}, fits the "
        f"layout 'small'"
    )
    assert "epoch 4, no learning rate recorded, 422,337 parameters in 10 layers" in large
    assert large.endswith("fits the layout 'large'")
    assert again == small
    for line, words in ((mlp, "does not fit the layout 'small'"), (call, "posix.system"), (link, "symbolic link")):
        assert line.startswith("refused: '")
        assert words in line
        assert len(line) <= 200
    assert sorted(path.name for path in files.iterdir()) == before, "no workspace, nothing executed, nothing kept"


def asked(monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[int, list[dict[str, Any]]]:
    """The exit code, and what was asked of the engine's process, which answers that every file is accepted."""
    requests: list[dict[str, Any]] = []

    def accepting(module: str, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
        requests.append(request)
        yield from ({"accepted": True, "line": "'x': epoch 1"} for _ in request["paths"])

    monkeypatch.setattr(computing, "answers_of", accepting)
    return CliRunner().invoke(cli.app, ["inspect", *words]).exit_code, requests


def test_good_files_are_exit_code_0_and_the_recipe_decides_the_model(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(files)
    code, (request,) = asked(monkeypatch, "--recipe", "analysis.toml", "mlp_5.pt", "--workspace", "place")
    assert code == 0
    assert (request["paths"], request["plugins"]) == ([str(files / "mlp_5.pt")], str(files / "place" / "plugins"))
    ((taken, fits),) = inspect_files([files / "mlp_5.pt"], models_asked(request["model"], files))
    assert isinstance(taken, Checkpoint)
    assert re.fullmatch(r"'mlp_5.pt': epoch 5, .* 4 parameters in 1 layers, float32, digest \w{12}", told(taken, 1, fits))
    code, (request,) = asked(monkeypatch, "--layout", "large", "mlp_5.pt")
    assert (code, request["model"]) == (0, {"kind": "ranker", "layout": "large"})
    ranker = models_asked(request["model"], files)[""]
    assert isinstance(ranker, Ranker)
    assert layers_of(ranker) == 10


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "Missing argument"),
        (("--layout", "tiny", "small_3.pt"), "no layout 'tiny'; choose small"),
        (("--layout", "small", "--recipe", "analysis.toml", "small_3.pt"), "leave out --layout, or --recipe"),
        (("--recipe", "gone.toml", "small_3.pt"), "cannot be read"),
    ],
)
def test_a_wrong_command_is_exit_code_2_and_does_not_wait_for_torch(words: tuple[str, ...], told: str, files: Path) -> None:
    answer = shell(*words, at=files)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert told in answer.stderr


def test_help_and_manual_name_every_option(files: Path) -> None:
    answer = shell("--help", at=files)
    assert "Example: python -m tracin_core inspect --" in " ".join(answer.stdout.split())
    options = set(re.findall(r"^  (--[a-z-]+)", answer.stdout, re.MULTILINE)) - {
        "--help",
        "--workspace",
        "--json",
    }
    section = (ROOT / "docs" / "command-line.md").read_text().split("\n## inspect\n")[1].split("\n## ")[0]
    assert options == {option for option in options if f"`{option}`" in section}
    assert options == {"--layout", "--recipe"}


# ---- layouts ----------------------------------------------------------------------------------------------------------------


class Strided(Ranker):
    """The small ranker with another stride, which no state dict shows."""

    def __init__(self) -> None:
        super().__init__("small")
        first = self.features[0]
        assert isinstance(first, nn.Conv2d)
        first.stride = (1, 1)


def test_layouts_that_differ_in_strides_only_are_both_named(files: Path) -> None:
    """A choice between them would be a guess: their scores differ, their weights' names and shapes do not."""
    models: dict[str, nn.Module] = {"large": Ranker("large"), "small": Ranker("small"), "strided": Strided()}
    spectra = torch.rand(2, 1, 40, 60)
    models["strided"].load_state_dict(models["small"].state_dict())
    assert not torch.allclose(models["small"].eval()(spectra), models["strided"].eval()(spectra))
    ((taken, fits),) = inspect_files([files / "small_3.pt"], models)
    assert isinstance(taken, Checkpoint)
    assert fits == ["small", "strided"]
    line = told(taken, layers_of(models["small"]), fits)
    assert "fits the layouts 'small' and 'strided', and no file tells their strides: choose the one it was trained with" in line


def test_a_refusal_names_every_layout_that_fits(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = checkpoints.layouts()
    monkeypatch.setattr(checkpoints, "layouts", lambda: {**known, "strided": known["small"]})
    (outcome,) = intake_folder([files / "small_3.pt"], tmp_path / "store", Ranker("large"))
    assert isinstance(outcome, CheckpointMismatchError)
    assert "it fits the layouts 'small' and 'strided': choose the one it was trained with." in str(outcome)
    assert len(str(outcome)) <= 200


def test_without_a_model_every_published_layout_is_tried() -> None:
    published = set(RankerModel.model_json_schema()["properties"]["layout"]["enum"])
    assert set(models_asked(None, Path("plugins"))) == published
    assert set(checkpoints.layouts()) == published


def test_a_file_of_no_layout_is_compared_with_the_nearest(files: Path, tmp_path: Path) -> None:
    state = Ranker("large").state_dict()
    state.pop("classifier.2.bias")
    (tmp_path / "cut_1.pt").write_bytes(saved(state))
    ((outcome, fits),) = inspect_files([tmp_path / "cut_1.pt"], models_asked(None, tmp_path))
    assert fits == []
    assert isinstance(outcome, CheckpointError)
    assert "does not fit the layout 'large': 1 key missing (classifier.2.bias)" in str(outcome)


def test_what_inspect_says_is_what_a_run_takes_in(files: Path, tmp_path: Path) -> None:
    ((told_, _),) = inspect_files([files / "small_3.pt"], {"": Ranker("small")})
    (taken,) = intake_folder([files / "small_3.pt"], tmp_path / "store", Ranker("small"))
    assert told_ == taken


# ---- the process between shell and child ------------------------------------------------------------------------------------


def test_an_error_of_recipe_or_machine_is_told_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = {"paths": ["/x"], "model": {"kind": "plugin", "name": "absent"}, "plugins": str(tmp_path)}
    monkeypatch.setattr(inspection.json, "load", lambda _: plugin)
    inspection.main()
    answer = json.loads(capsys.readouterr().out)
    assert answer["by_input"] is True
    assert "absent" in answer["failed"]


def test_names_that_a_terminal_would_act_on_are_told_harmlessly(tmp_path: Path) -> None:
    path = tmp_path / "a\x1b[31m\nb_1.pt"
    path.write_bytes(saved(Ranker("small").state_dict()))
    ((taken, fits),) = inspect_files([path], {"": Ranker("small")})
    assert isinstance(taken, Checkpoint)
    assert told(taken, 6, fits).isprintable()
