"""Taking checkpoints in: nothing in a file is executed, nothing is silently different, good files are not refused."""

import hashlib
import json
import os
import random
import resource
import socket
import subprocess
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hostile_files import archive_of, by_hand, hostile_files, records_of, same_hash, saved
from intake_child import Standing, standing
from torch import nn

from tracin_core.engine import checkpoints
from tracin_core.engine.checkpoints import Checkpoint, intake, intake_folder, load_weights, outcome_of, safetensors_pieces
from tracin_core.engine.intake import comes_from, refusal
from tracin_core.engine.models import Ranker
from tracin_core.errors import (
    CheckpointError,
    CheckpointMismatchError,
    DiskFullError,
    MachineError,
    UnsafeCheckpointError,
    WorkspaceError,
)
from tracin_core.records.checkpoint_files import list_checkpoints

LONG = os.environ.get("TRACIN_LONG") == "1"
MUTATIONS = 5_000 if LONG else 300
SECONDS = 2.0  # of the processor, for one hostile file
BYTES = 512 * 2**20  # above three times a file, which its reading may take
State = dict[str, torch.Tensor]
ARGUMENTS = {"margin": 10.0, "loss_type": "margin", "seed": 42, "exclusions_file": None, "milestones": [3, 5], "net": {"width": 16}}


OWN_CHILD = checkpoints.child


@pytest.fixture(scope="module", autouse=True)
def child() -> Iterator[Standing]:
    """One watched child reads all files of this module, but for the tests that are about a child's life."""
    with standing() as one, pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "child", one.child)
        yield one


@pytest.fixture
def own_child(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "child", OWN_CHILD)


class Tied(nn.Module):
    """One matrix under two names, and a buffer of whole numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)
        self.last.weight = self.first.weight
        self.register_buffer("places", torch.arange(4))


def state_of(model: nn.Module) -> State:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.fixture(scope="module")
def model() -> Ranker:
    torch.manual_seed(0)
    return Ranker("small").eval()


@pytest.fixture(scope="module")
def state(model: Ranker) -> State:
    return state_of(model)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@dataclass(frozen=True)
class Room:
    """One folder of files taken in by one child: what was in it, what became of it."""

    folder: Path
    files: dict[str, bytes]
    outcomes: dict[str, Checkpoint | CheckpointError]
    finished: list[int]

    @property
    def store(self) -> Path:
        return self.folder / "store"

    def accepted(self, name: str) -> Checkpoint:
        outcome = self.outcomes[name]
        assert isinstance(outcome, Checkpoint), outcome
        return outcome


def room(folder: Path, model: nn.Module, files: dict[str, bytes]) -> Room:
    finished: list[int] = []
    outcomes = intake_folder(written(folder / "files", files), folder / "store", model, on_each=finished.append)
    return Room(folder, files, dict(zip(files, outcomes, strict=True)), finished)


@pytest.fixture(scope="module")
def good_room(model: Ranker, state: State, tmp_path_factory: pytest.TempPathFactory) -> Room:
    """The files of all tests that only look at what a good file of the small ranker becomes."""
    files = {
        **dict(good_files(model, state)),
        **dict(sixteen_bit_files(state)),
        **training_files(model, state),
        **lightning_files(model, state),
        "strange_4.pt": saved({"model_state_dict": state, **STRANGE}),
        "large_9.pt": saved({"model_state_dict": Ranker("large").state_dict()}),
        "other_9.pt": saved(state_of(nn.Linear(3, 3))),
    }
    return room(tmp_path_factory.mktemp("good"), model, files)


def written(folder: Path, files: dict[str, bytes]) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in files]


def one_line(outcome: object) -> str:
    assert isinstance(outcome, CheckpointError), f"accepted: {outcome}"
    sentence = str(outcome)
    assert len(sentence) <= 200
    assert sentence.isprintable()
    assert sentence.endswith(".")
    assert "; " in sentence, "no cure is named"
    return sentence


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


# ---- what does not fit ------------------------------------------------------------------------------------------------------


def test_a_mismatch_names_three_keys_and_the_layout_that_fits(state: State, good_room: Room, store: Path, tmp_path: Path) -> None:
    (small_file,) = written(tmp_path / "files", {"model_epoch_1.pt": saved({"model_state_dict": state})})
    for_large = one_line(intake_folder([small_file], store, Ranker("large"))[0])
    for_small, other = good_room.outcomes["large_9.pt"], good_room.outcomes["other_9.pt"]
    three = "(features.8.weight, features.8.bias, features.9.weight)"
    assert "missing " + three in for_large
    assert "unknown " + three in one_line(for_small)
    assert "fits the layout 'small'" in for_large
    assert "fits the layout 'large'" in str(for_small)
    assert "missing (features.0.weight, features.0.bias, features.1.weight), 2 keys unknown (weight, bias)" in one_line(other)
    assert "layout" not in str(other)
    assert isinstance(for_small, CheckpointMismatchError)


def test_weights_tied_in_the_model(store: Path, tmp_path: Path) -> None:
    """They may be stored once or twice, but not differ; whole numbers stay whole."""
    model = Tied()
    state = state_of(model)
    files = {
        "twice_1.pt": saved(model.state_dict()),
        "once_2.safetensors": safetensors.torch.save({name: value for name, value in state.items() if name != "last.weight"}),
        "differ_3.pt": saved({**state, "last.weight": torch.zeros(4, 4)}),
        "floats_4.pt": saved({**state, "places": torch.arange(4.0)}),
    }
    taken = room(tmp_path, model, files)
    assert taken.accepted("twice_1.pt").digest == taken.accepted("once_2.safetensors").digest
    assert "are one tensor in the model" in one_line(taken.outcomes["differ_3.pt"])
    assert "holds float32 where the model has int64" in one_line(taken.outcomes["floats_4.pt"])
    fresh = Tied()
    load_weights(fresh, taken.store, taken.accepted("once_2.safetensors").digest)
    assert torch.equal(fresh.last.weight, state["first.weight"])


# ---- good files -------------------------------------------------------------------------------------------------------------


def training(model: Ranker, kind: Callable[..., torch.optim.Optimizer], **settings: Any) -> dict[str, Any]:
    """What a lab's training saves after one step with this optimiser."""
    copy = Ranker("small")
    copy.load_state_dict(model.state_dict())
    optimizer = kind(copy.parameters(), **settings)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=10)
    copy(torch.rand(2, 1, 33, 40)).sum().backward()
    optimizer.step()
    scheduler.step()
    return {
        "epoch": 7,
        "model_state_dict": copy.state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
        "scheduler_state_dict": scheduler.state_dict(),
        "train_loss_main": 0.25,
        "val_loss_main": 0.5,
        "train_accuracy": 1,
        "val_accuracy": 0.75,
        "args": ARGUMENTS,
    }


def prefixed(state: State, prefix: str) -> State:
    return OrderedDict((prefix + name, value) for name, value in state.items())


def good_files(model: Ranker, state: State) -> Iterator[tuple[str, bytes]]:
    """File name and bytes of what people really have; all of these hold exactly the weights of `state`."""
    plain = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    flat = torch.cat([value.reshape(-1) for value in plain.values()])
    places = [0, *torch.tensor([value.numel() for value in plain.values()]).cumsum(0).tolist()]
    views = {name: flat[start:end].view(plain[name].shape) for name, start, end in zip(plain, places, places[1:], strict=False)}
    fortran = {name: value.t().contiguous().t() if value.dim() == 2 else value for name, value in state.items()}
    milestones = torch.optim.lr_scheduler.MultiStepLR(torch.optim.SGD(model.parameters(), lr=0.1), milestones=[3, 5, 5])
    yield "bare_1.pt", saved(state)
    yield "ordered_2.pt", saved(model.state_dict())
    yield "lab_3.pt", saved({"epoch": 3, "model_state_dict": state, "args": {"margin": 10}})
    yield "state_dict_4.pth", saved({"state_dict": state, "pytorch-lightning_version": "2.4", "callbacks": {}, "loops": None})
    yield "under_model_5.pt", saved({"model": state})
    yield "under_net_6.pt", saved({"net": state, "acc": 91.2, "epoch": 6})
    yield "nested_7.pt", saved({"model": {"state_dict": state}, "best": True})
    yield "parallel_8.pt", saved({"model_state_dict": prefixed(state, "module.")})
    yield "compiled_9.pt", saved(prefixed(state, "_orig_mod."))
    yield "both_10.pt", saved(prefixed(state, "module._orig_mod."))
    yield "parameters_11.pt", saved({**state, **dict(model.named_parameters())})
    yield "no_counters_12.pt", saved(plain)
    yield "views_13.pt", saved(views)
    yield "strided_14.pt", saved(fortran)
    yield (
        "channels_last_15.pt",
        saved({k: v.to(memory_format=torch.channels_last) if v.dim() == 4 else v for k, v in state.items()}),
    )
    yield "double_16.pt", saved({name: value.double() if value.is_floating_point() else value for name, value in state.items()})
    yield "random_state_17.pt", saved({"rng": torch.get_rng_state(), "model_state_dict": state, "devices": {torch.device("cpu")}})
    yield (
        "milestones_18.pt",
        saved({"model": state, "scheduler": milestones.state_dict(), "dtype": torch.float32, "shape": torch.Size([1])}),
    )
    yield "on_a_gpu_19.pt", on_a_gpu(saved(state))
    yield "bytes_20.pt", saved({"model": state, "note": b"\x00\xff", "tags": {"a", "b"}})
    yield "plain_21.safetensors", safetensors.torch.save(plain)
    yield "described_22.safetensors", safetensors.torch.save(state, metadata={"format": "pt"})
    yield "prefixed_23.safetensors", safetensors.torch.save(prefixed(plain, "module."))
    yield "lightning_24.ckpt", saved(lightning(model, "model."))
    yield "lightning_net_25.ckpt", saved(lightning(model, "net."))
    yield "lightning_compiled_26.ckpt", saved(lightning(model, "model._orig_mod."))
    yield "parallel_net_27.pt", saved(prefixed(state, "module.net."))
    yield "torchvision_28.pth", saved({"model": state, "optimizer": milestones.optimizer.state_dict(), "args": {"lr": 0.1}})
    yield (
        "timm_29.pth.tar",
        saved({"arch": "ranker", "state_dict": state, "version": 2, "amp_scaler": {"scale": 65536.0}, "metric": 0.5}),
    )
    yield "averaged_beside_30.pt", saved({"model": state, "model_ema": {name: value * 0.9 for name, value in state.items()}})
    yield (
        "all_random_states_31.pt",
        saved({"model": state, "python": random.getstate(), "torch": torch.get_rng_state(), "cuda": [torch.get_rng_state()]}),
    )
    yield "history_32.pt", saved({"net": state, "history": [[0.5, 0.25]] * 1000, "best": {"epoch": 4, "loss": float("inf")}})
    yield (
        "classes_33.pt",
        saved({"model": state, "classes": ["deg000", "角度"], "index": {0: "deg000"}, "size": 2**70, "none": None}),
    )
    yield "spaced name (copy) 34.pt", saved(state)


def lightning(model: nn.Module, prefix: str, *, epoch: int = 4, rates: tuple[float, ...] = (0.025,)) -> dict[str, Any]:
    """What Lightning's `ModelCheckpoint` saves of a module that holds the network under this prefix."""
    groups = [{"params": [parameter], "lr": rate} for parameter, rate in zip(model.parameters(), rates, strict=False)]
    optimizer = torch.optim.AdamW(groups)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    return {
        "epoch": epoch,
        "global_step": 12 * (epoch + 1),
        "pytorch-lightning_version": "2.4.0",
        "state_dict": prefixed(state_of(model), prefix),
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"current": {"ready": epoch + 1, "completed": epoch}}}},
        "callbacks": {
            "ModelCheckpoint{'monitor': None}": {"best_model_path": "/x/epoch=4.ckpt", "best_model_score": torch.tensor(0.5)}
        },
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [schedule.state_dict()],
        "MixedPrecision": {"scale": 65536.0, "_growth_tracker": 0},
        "hparams_name": "kwargs",
        "hyper_parameters": {"margin": 2.0, "learning_rate": 0.1, "batch_size": 8},
    }


def on_a_gpu(raw: bytes) -> bytes:
    """The same file as it would be had the tensors been on a GPU."""
    records = records_of(raw)
    here, there = b"X\x03\0\0\0cpu", b"X\x06\0\0\0cuda:0"
    assert here in records["archive/data.pkl"]
    return archive_of({**records, "archive/data.pkl": records["archive/data.pkl"].replace(here, there)})


def test_good_files_are_accepted_with_one_identity(model: Ranker, state: State, good_room: Room) -> None:
    """Equal weights have one digest and one copy, however they were wrapped; each file keeps its own name and epoch."""
    names = [name for name, _ in good_files(model, state)]
    assert len(names) >= 34
    for name in names:
        taken = good_room.accepted(name)
        assert taken.source == name
        assert taken.epoch == (5 if "lightning" in name else int(name.replace(" ", "_").rsplit("_", 1)[1].split(".")[0]))
        assert taken.parameters == 5_733
        assert taken.stored_as == ("float64" if "double" in name else "float32")
        assert Checkpoint.from_dict(json.loads(json.dumps(taken.to_dict(), allow_nan=False))) == taken
    assert len({good_room.accepted(name).digest for name in names}) == 1
    kept = {f"{outcome.digest}.safetensors" for outcome in good_room.outcomes.values() if isinstance(outcome, Checkpoint)}
    assert {path.name for path in good_room.store.iterdir()} == kept


def test_the_canonical_copy_is_what_the_safetensors_library_writes() -> None:
    weights = {
        "b": torch.randn(2, 3),
        "a": torch.arange(3),
        "é": torch.ones(()),
        "c": torch.ones(3, dtype=torch.bool),
        "d": torch.empty(0, 2),
    }
    mixed = {**weights, "w": torch.randn(2, dtype=torch.float64)}
    for case in (weights, mixed):
        assert b"".join(safetensors_pieces(case)) == safetensors.torch.save(case)


def test_the_identity_is_stable() -> None:
    """A digest that changed from one version to the next would recompute every kernel."""
    weights = {"weight": torch.tensor([[0.5, -2.0]]), "bias": torch.tensor([1.0])}
    digest = hashlib.sha256(b"".join(safetensors_pieces(weights))).hexdigest()
    assert digest == "fb4922e113ab9464456e19bae75e92c66dd18cfeea3eb89ba8b1ba32d7b4531e"


def test_weights_come_back_exactly(state: State, good_room: Room) -> None:
    store, taken = good_room.store, good_room.accepted("lab_3.pt")
    fresh = Ranker("small")
    load_weights(fresh, store, taken.digest)
    for name, value in fresh.state_dict().items():
        assert torch.equal(value, state[name]), name
    with pytest.raises(CheckpointMismatchError, match="do not fit"):
        load_weights(Ranker("large"), store, taken.digest)
    for gone in ("0" * 64, "../store/x", ""):
        with pytest.raises(CheckpointError, match="not in the workspace"):
            load_weights(fresh, store, gone)


def test_a_damaged_copy_is_noticed_and_written_again(
    model: Ranker, state: State, good_room: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By relative paths, too, which mean the caller's folder."""
    monkeypatch.chdir(tmp_path)
    path, store = Path("files/lab_3.pt"), Path("store")
    written(path.parent, {path.name: good_room.files[path.name]})
    whole = good_room.accepted(path.name)
    raw = bytearray((good_room.store / f"{whole.digest}.safetensors").read_bytes())
    raw[-1] ^= 1
    written(store, {f"{whole.digest}.safetensors": bytes(raw)})
    with pytest.raises(CheckpointError, match="damaged"):
        load_weights(Ranker("small"), store, whole.digest)
    assert intake(path, store, model) == whole
    load_weights(Ranker("small"), store, whole.digest)


SIXTEEN = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def sixteen_bit_files(state: State) -> Iterator[tuple[str, bytes]]:
    for name, dtype in SIXTEEN.items():
        yield f"{name}_1.pt", saved({key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()})


@pytest.mark.parametrize("name", SIXTEEN)
def test_sixteen_bit_weights_are_kept_as_float32_and_said_so(name: str, state: State, good_room: Room) -> None:
    taken = good_room.accepted(f"{name}_1.pt")
    assert taken.stored_as == name
    fresh = Ranker("small")
    load_weights(fresh, good_room.store, taken.digest)
    for key, value in fresh.named_parameters():
        assert torch.equal(value, state[key].to(SIXTEEN[name]).float()), key


# ---- what a file records beside its weights ---------------------------------------------------------------------------------


def training_files(model: Ranker, state: State) -> dict[str, bytes]:
    optim = torch.optim
    return {
        "adamw_1.pt": saved(training(model, optim.AdamW, lr=0.1)),
        "momentum_2.pt": saved(training(model, optim.SGD, lr=0.1, momentum=0.9)),
        "plain_sgd_3.pt": saved({"model": state, "optimizer_state_dict": optim.SGD(model.parameters(), lr=0.01).state_dict()}),
        "rmsprop_4.pt": saved(training(model, optim.RMSprop, lr=0.1, momentum=0.9)),
    }


def lightning_files(model: Ranker, state: State) -> dict[str, bytes]:
    """By what is asked of them."""
    return {
        "epoch=4-step=60.ckpt": saved(lightning(model, "model.")),
        "epoch=7-step=96-v1.ckpt": saved({"state_dict": prefixed(state, "model.")}),
        "before-training.ckpt": saved({**lightning(model, "model.", epoch=0), "global_step": 0}),
        "two_rates_5.ckpt": saved(lightning(model, "model.", rates=(0.1, 0.2))),
        "one_rate_5.ckpt": saved(lightning(model, "model.", rates=(0.1, 0.1))),
        "losses_6.pt": saved(
            {"model": state, "train_loss": 0.25, "val_loss": torch.tensor(0.5), "loss": 9.0, "hparams": {"margin": 3}}
        ),
        "optimizer_7.pt": saved({"model": state, "optimizer": torch.optim.SGD(model.parameters(), lr=0.5).state_dict()}),
    }


def test_what_other_trainers_record_is_read(good_room: Room) -> None:
    """Lightning counts its epochs from 0, this product from 1: its first one is not taken for the state before training."""
    names = ("epoch=4-step=60.ckpt", "epoch=7-step=96-v1.ckpt", "before-training.ckpt", "losses_6.pt", "optimizer_7.pt")
    fifth, eighth, before, losses, optimizer = (good_room.accepted(name) for name in names)
    assert [(taken.epoch, taken.recorded_epoch) for taken in (fifth, eighth, before)] == [(5, 5), (8, None), (0, 0)]
    assert (fifth.learning_rate, eighth.learning_rate) == (0.025, None), "the optimiser's, not the one that the training began with"
    assert fifth.arguments == {"margin": 2.0, "learning_rate": 0.1, "batch_size": 8}
    assert (losses.train_loss, losses.validation_loss, losses.arguments) == (0.25, 0.5, {"margin": 3})
    assert (optimizer.learning_rate, optimizer.optimizer) == (0.5, "SGD")


def test_a_rate_that_differs_between_parameters_is_not_guessed(good_room: Room) -> None:
    assert good_room.accepted("two_rates_5.ckpt").learning_rate is None
    assert good_room.accepted("one_rate_5.ckpt").learning_rate == 0.1


def test_the_records_of_a_training_are_kept(model: Ranker, good_room: Room) -> None:
    names = ("adamw_1.pt", "momentum_2.pt", "plain_sgd_3.pt", "rmsprop_4.pt", "bare_1.pt")
    adamw, momentum, plain, rmsprop, bare = (good_room.accepted(name) for name in names)
    assert [taken.optimizer for taken in (adamw, momentum, plain, rmsprop, bare)] == ["Adam", "SGD", "SGD", None, None]
    assert momentum.descent["momentum"] > 0
    assert plain.descent["momentum"] == 0
    assert bare.descent == {}
    assert (adamw.epoch, adamw.recorded_epoch) == (7, 7), "the file's own record comes before its name"
    assert (bare.epoch, bare.recorded_epoch) == (1, None)
    assert (adamw.train_loss, adamw.validation_loss, adamw.train_accuracy, adamw.validation_accuracy) == (0.25, 0.5, 1.0, 0.75)
    assert adamw.learning_rate == pytest.approx(0.052), "as OneCycle set it for the next step"
    assert (plain.learning_rate, bare.learning_rate) == (0.01, None)
    assert adamw.arguments == ARGUMENTS
    assert bare.arguments == {}


STRANGE = {
    "epoch": -3,
    "train_loss_main": float("nan"),
    "val_loss_main": 10**400,
    "train_accuracy": True,
    "val_accuracy": torch.tensor(0.5, dtype=torch.float64),
    "optimizer_state_dict": {"state": {0: {"exp_avg": 1}}, "param_groups": [{"lr": torch.tensor(0.25)}]},
    "args": {
        "margin": float("inf"),
        "text": "\ud800",
        "long": "x" * 5000,
        "tensor": torch.ones(3),
        "many": [0] * 5000,
        3: (1, None),
        "big": 10**400,
    },
}


def test_strange_records_become_plain_values(good_room: Room) -> None:
    """What a run's manifest cannot hold is said in words or None; it never breaks the manifest later."""
    taken = good_room.accepted("strange_4.pt")
    assert (taken.epoch, taken.recorded_epoch) == (4, None)
    assert (taken.train_loss, taken.validation_loss, taken.train_accuracy, taken.validation_accuracy) == (None, None, None, 0.5)
    assert (taken.learning_rate, taken.optimizer) == (0.25, "Adam")
    expected = {
        "margin": "float",
        "text": "\\ud800",
        "long": "x" * 1000,
        "tensor": "Tensor",
        "many": "list",
        "3": [1, None],
        "big": "int",
    }
    assert taken.arguments == expected
    json.dumps(taken.to_dict(), allow_nan=False, ensure_ascii=False).encode()


def test_a_stored_checkpoint_of_another_form_is_refused() -> None:
    with pytest.raises(CheckpointError, match="'arguments' is missing"):
        Checkpoint.from_dict({})


def test_two_files_with_equal_weights_share_a_copy_and_keep_their_records(good_room: Room) -> None:
    first, second = good_room.accepted("lab_3.pt"), good_room.accepted("under_net_6.pt")
    assert first.digest == second.digest
    assert (first.epoch, second.epoch) == (3, 6)
    assert (first.arguments, second.arguments) == ({"margin": 10}, {})


def test_checkpoints_are_listed_by_epoch(tmp_path: Path) -> None:
    names = [f"model_epoch_{n}.pt" for n in (10, 12, 2)]
    written(tmp_path, dict.fromkeys(names, b"x"))
    assert [path.name for path in list_checkpoints(tmp_path, "model_epoch_")] == [f"model_epoch_{n}.pt" for n in (2, 10, 12)]


@pytest.mark.parametrize(
    ("prefix", "names"),
    [
        ("epoch=", ["epoch=2-step=30.ckpt", "epoch=9.ckpt", "epoch=10-step=150.ckpt"]),
        ("checkpoint_", ["checkpoint_1.pth.tar", "checkpoint_2.safetensors", "checkpoint_10.pt"]),
    ],
)
def test_names_of_other_trainers_are_listed(prefix: str, names: list[str], tmp_path: Path) -> None:
    written(tmp_path, dict.fromkeys([*names, "other.pt", f"{prefix}١.pt"], b"x"))
    assert [path.name for path in list_checkpoints(tmp_path, prefix)] == names


@pytest.mark.parametrize("names", [[], ["a" * 250, "b\n.pt"], ["\x1b[31m" + "c" * 90], ["1.pt", "01.pt"]])
def test_a_folder_is_refused_in_one_line(names: list[str], tmp_path: Path) -> None:
    folder = tmp_path / ("folder\n" + "x" * 200)
    written(folder, dict.fromkeys(names, b"x"))
    for place in (folder, folder / "gone"):
        with pytest.raises(CheckpointError) as failure:
            list_checkpoints(place, "" if "1.pt" in names else "model_epoch_" * 20)
        one_line(failure.value)


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
