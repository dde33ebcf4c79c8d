"""Good checkpoint files, generated, and what becomes of them: taken in once a test file, by one watched child, for those that only look.

pytest_plugins = ("good_files",)
pytestmark = pytest.mark.usefixtures("child")

def test_something(good_room): ...      # what the files became
"""

import random
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hostile_files import archive_of, records_of, saved
from intake_child import Standing, standing
from torch import nn

from tracin_core.engine import checkpoints
from tracin_core.engine.checkpoints import Checkpoint, intake_folder
from tracin_core.engine.models import Ranker
from tracin_core.errors import CheckpointError

State = dict[str, torch.Tensor]
ARGUMENTS = {"margin": 10.0, "loss_type": "margin", "seed": 42, "exclusions_file": None, "milestones": [3, 5], "net": {"width": 16}}


OWN_CHILD = checkpoints.child


@pytest.fixture(scope="module")
def child() -> Iterator[Standing]:
    """One watched child reads all files of this module, but for the tests that are about a child's life."""
    with standing() as one, pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "child", one.child)
        yield one


@pytest.fixture
def own_child(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "child", OWN_CHILD)


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


SIXTEEN = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def sixteen_bit_files(state: State) -> Iterator[tuple[str, bytes]]:
    for name, dtype in SIXTEEN.items():
        yield f"{name}_1.pt", saved({key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()})


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
