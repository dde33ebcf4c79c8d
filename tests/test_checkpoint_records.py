"""What a checkpoint file records beside its weights, and in which order a folder's files are."""

import json
from pathlib import Path

import pytest
from good_files import ARGUMENTS, Room, one_line, written

from tracin_core.engine.checkpoints import Checkpoint
from tracin_core.engine.models import Ranker
from tracin_core.errors import CheckpointError
from tracin_core.records.checkpoint_files import list_checkpoints

pytest_plugins = ("good_files",)
pytestmark = pytest.mark.usefixtures("child")


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
