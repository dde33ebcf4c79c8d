"""Good checkpoint files are not refused, keep their weights and one identity, and what does not fit is said."""

import hashlib
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from good_files import SIXTEEN, Room, State, good_files, one_line, room, state_of, written
from hostile_files import saved
from torch import nn

from tracin_core.engine.checkpoints import Checkpoint, intake, intake_folder, load_weights, safetensors_pieces
from tracin_core.engine.models import Ranker
from tracin_core.errors import CheckpointError, CheckpointMismatchError

pytest_plugins = ("good_files",)
pytestmark = pytest.mark.usefixtures("child")


class Tied(nn.Module):
    """One matrix under two names, and a buffer of whole numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)
        self.last.weight = self.first.weight
        self.register_buffer("places", torch.arange(4))


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
    taken_in = [outcome for outcome in good_room.outcomes.values() if isinstance(outcome, Checkpoint)]
    digests = {one.digest for one in taken_in} | {one.second_moment for one in taken_in if one.second_moment is not None}
    kept = {f"{digest}.safetensors" for digest in digests}
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


@pytest.mark.parametrize("name", SIXTEEN)
def test_sixteen_bit_weights_are_kept_as_float32_and_said_so(name: str, state: State, good_room: Room) -> None:
    taken = good_room.accepted(f"{name}_1.pt")
    assert taken.stored_as == name
    fresh = Ranker("small")
    load_weights(fresh, good_room.store, taken.digest)
    for key, value in fresh.named_parameters():
        assert torch.equal(value, state[key].to(SIXTEEN[name]).float()), key
