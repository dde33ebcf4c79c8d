"""Nothing in a checkpoint file is executed, nothing is silently different, and what is refused is said in one line."""

import os
import random
import resource
import socket
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from good_files import Room, State, one_line, room, written
from hostile_files import by_hand, hostile_files, same_hash, saved
from intake_child import Standing
from torch import nn

from tracin_core.engine import checkpoints
from tracin_core.engine.checkpoints import Checkpoint, intake, intake_folder, outcome_of
from tracin_core.engine.intake import comes_from, refusal
from tracin_core.engine.models import Ranker
from tracin_core.errors import CheckpointError, DiskFullError, MachineError, UnsafeCheckpointError, WorkspaceError

pytest_plugins = ("good_files",)
pytestmark = pytest.mark.usefixtures("child")

LONG = os.environ.get("TRACIN_LONG") == "1"
MUTATIONS = 5_000 if LONG else 300
SECONDS = 2.0  # of the processor, for one hostile file
BYTES = 512 * 2**20  # above three times a file, which its reading may take


# ---- refusals ---------------------------------------------------------------------------------------------------------------


def test_hostile_files_are_refused_in_one_line_and_nothing_happens(
    state: State, model: Ranker, child: Standing, tmp_path: Path
) -> None:
    """Nothing is written, started, opened or asked of the network; each costs at most 2 s and 512 MB beside three times its bytes."""
    marker = tmp_path / "executed"
    cases = {name: (raw, words) for name, raw, words in hostile_files(state, marker)}
    hostile = room(tmp_path, model, {name: raw for name, (raw, _) in cases.items()})
    assert len(cases) >= 130
    for name, (_, words) in cases.items():
        sentence = one_line(hostile.outcomes[name])
        assert words in sentence, name
        assert sentence.startswith(f"'{name[:4]}"), name
        assert len(f"refused: {sentence}") <= 200, "as `inspect` prints it"
        cost = child.costs[name]
        assert cost["acts"] == [], name
        assert cost["seconds"] <= SECONDS, name
        assert cost["bytes"] <= 3 * len(hostile.files[name]) + BYTES, name
    assert hostile.finished == list(range(1, len(cases) + 1))
    assert not marker.exists()
    assert list(hostile.store.iterdir()) == []
    assert {name: (tmp_path / "files" / name).read_bytes() for name in cases} == hostile.files
    assert sorted(path.name for path in tmp_path.iterdir()) == ["files", "store"]


def test_the_watch_notices_what_a_good_file_leads_to(good_room: Room, child: Standing) -> None:
    """So that its silence about hostile files means something: the first copy of these weights is written, flushed and renamed."""
    assert good_room.accepted("bare_1.pt")
    acts = child.costs["bare_1.pt"]["acts"]
    assert any("for writing" in act for act in acts)
    assert "os.rename" in acts
    assert child.costs["bare_1.pt"]["bytes"] < BYTES


def test_what_is_no_regular_file_is_refused(state: State, model: Ranker, store: Path, child: Standing, tmp_path: Path) -> None:
    (good,) = written(tmp_path / "files", {"good_1.pt": saved(state)})
    folder = good.parent
    (folder / "link_1.pt").symlink_to(good)
    (folder / "lost_1.pt").symlink_to(folder / "nowhere")
    (folder / "folder_1.pt").mkdir()
    os.mkfifo(folder / "pipe_1.pt")
    with socket.socket(socket.AF_UNIX) as listener, (folder / "huge_1.pt").open("wb") as file:
        listener.bind(str(folder / "talk_1.pt"))
        file.truncate(2**33 + 1)
    link, regular, gone = "symbolic link", "regular file", "No such file"
    cases = {
        "link_1.pt": link, "lost_1.pt": link, "folder_1.pt": regular, "pipe_1.pt": regular, "talk_1.pt": regular,
        "/dev/zero": regular, "/dev/tty": regular, "/proc/self/environ": "is empty", "huge_1.pt": "more than the limit",
        "absent_1.pt": gone, "\udcff_1.pt": gone, "..": "'..'", "../files/good_1.pt": "'..'", "nul\0_1.pt": "NUL",
        "long" * 100 + "_1.pt": "name too long",
    }  # fmt: skip
    outcomes = intake_folder([folder / name for name in cases] + [good], store, model)
    for outcome, (name, words) in zip(outcomes, cases.items(), strict=False):
        assert words in one_line(outcome), name
    assert isinstance(outcomes[-1], Checkpoint)
    assert all(cost["seconds"] < SECONDS for cost in child.costs.values())


@pytest.mark.usefixtures("own_child")
def test_a_file_that_brings_the_child_down_costs_only_itself(
    state: State, model: Ranker, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "CPU_SECONDS", 1)
    files = {"first_1.pt": saved(state), "slow_2.pt": by_hand(same_hash(60_000)), "last_3.pt": saved(state)}
    first, slow, last = intake_folder(written(tmp_path / "files", files), store, model)
    assert "more memory or time" in one_line(slow)
    assert isinstance(slow, UnsafeCheckpointError)
    assert isinstance(first, Checkpoint)
    assert isinstance(last, Checkpoint)


@pytest.mark.usefixtures("own_child")
def test_a_silent_child_is_ended(state: State, model: Ranker, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "ANSWER_SECONDS", 0.05)
    with pytest.raises(MachineError, match="cannot start"):
        intake_folder(written(tmp_path / "files", {"good_1.pt": saved(state)}), store, model)


@pytest.mark.usefixtures("own_child")
def test_a_child_that_cannot_start_is_not_the_files_fault(
    state: State, model: Ranker, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints.sys, "executable", "/bin/false")
    with pytest.raises(MachineError, match=r"exit status 1"):
        intake_folder(written(tmp_path / "files", {"good_1.pt": saved(state)}), store, model)


@pytest.mark.usefixtures("own_child")
def test_nothing_is_left_when_the_caller_stops_listening(
    state: State, model: Ranker, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cancelled job leaves no process, thread or handle behind, and limits were the child's alone."""
    started: list[Any] = []
    popen = subprocess.Popen
    monkeypatch.setattr(checkpoints.subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1])

    def cancel(done: int) -> None:
        raise InterruptedError(str(done))

    before = traces()
    with pytest.raises(InterruptedError, match="1"):
        intake_folder(written(tmp_path / "files", {f"good_{n}.pt": saved(state) for n in (1, 2)}), store, model, on_each=cancel)
    assert [process.poll() is not None for process in started] == [True]
    assert traces() == before


def traces() -> tuple[Any, ...]:
    limits = [resource.getrlimit(kind) for kind in (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_CORE)]
    return limits, threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))


def test_an_error_of_the_machine_is_raised_as_such(state: State, model: Ranker, good_room: Room, tmp_path: Path) -> None:
    (path,) = written(tmp_path / "files", {"good_1.pt": saved(state)})
    (tmp_path / "taken").write_text("a file where the store should be")
    with pytest.raises(WorkspaceError, match="taken"):
        intake(path, tmp_path / "taken", model)
    digest = good_room.accepted("bare_1.pt").digest
    (tmp_path / "other" / f"{digest}.safetensors" / "in the way").mkdir(parents=True)
    with pytest.raises(MachineError, match="cannot be written"):
        intake(path, tmp_path / "other", model)
    with pytest.raises(DiskFullError, match="no room"):
        outcome_of("x_1.pt", tmp_path, {"disk_full": "no room"})


def test_a_copy_that_is_not_what_the_child_promised_is_refused(good_room: Room) -> None:
    taken = good_room.accepted("bare_1.pt")
    for digest in ("0" * 64, "../../etc/passwd", taken.digest.upper()):
        outcome = outcome_of("good_1.pt", good_room.store, {"accepted": {**taken.to_dict(), "digest": digest}})
        assert "not what was checked" in one_line(outcome)
    assert outcome_of("good_1.pt", good_room.store, {"accepted": taken.to_dict()}) == taken
    assert type(outcome_of("x", good_room.store, {"refused": "no", "kind": "SystemExit"})) is CheckpointError


def test_a_refusal_is_one_printable_line_for_any_name() -> None:
    for name in ("a\nb", "\x1b[31m", "n" * 5000, "\udcff", "\u202e", ""):
        one_line(refusal(CheckpointError, name, "reason\n" * 100, "the cure"))


def test_bytes_that_are_in_no_record_are_noticed() -> None:
    """Memory that was never written would make every score unrepeatable."""
    assert not comes_from(torch.ones(3), frozenset())
    assert comes_from(torch.empty(0), frozenset())


# ---- damage -----------------------------------------------------------------------------------------------------------------


def mutated(raw: bytes, random_: random.Random) -> bytes:
    """The bytes after one to three accidents: a flipped bit, a changed, lost, doubled or zeroed stretch."""
    changed = bytearray(raw)
    for _ in range(random_.randint(1, 3)):
        at, length = random_.randrange(len(changed)), random_.choice((1, 2, 4, 16, 512))
        kind = random_.randrange(6)
        if kind <= 1:
            changed[at] ^= 1 << random_.randrange(8)
        elif kind == 2:
            changed[at : at + length] = random_.randbytes(length)
        elif kind == 3:
            del changed[at : at + length]
        elif kind == 4:
            changed[at:at] = changed[at : at + length]
        else:
            changed[at : at + length] = bytes(length)
    return bytes(changed)


def test_damage_is_never_silently_different(store: Path, tmp_path: Path) -> None:
    """Every damaged torch file is refused, or has exactly the weights of the whole one."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    good = saved({"epoch": 5, "model_state_dict": model.state_dict(), "args": {"margin": 10.0}})
    random_ = random.Random(20261124)
    files = {"good_0.pt": good, **{f"damaged_{n}.pt": mutated(good, random_) for n in range(MUTATIONS)}}
    whole, *outcomes = intake_folder(written(tmp_path / "f", files), store, model)
    assert isinstance(whole, Checkpoint)
    refused = 0
    for outcome in outcomes:
        if isinstance(outcome, Checkpoint):
            assert (outcome.digest, outcome.epoch, outcome.arguments) == (whole.digest, whole.epoch, whole.arguments)
        else:
            one_line(outcome)
            refused += 1
    assert refused > MUTATIONS // 2
    assert [path.name for path in store.iterdir()] == [f"{whole.digest}.safetensors"]
