"""Checkpoints from somebody else's training loop, with all that the analyses of this product ask of them.

with RecordTraining("checkpoints/box_1000hz", model, optimizer, batch_size=64) as record:
    for epoch in range(20):
        ...
        record.epoch(train_loss=loss)
"""

import io
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn

from tracin_core.data.files import write_json, write_whole
from tracin_core.engine.objectives import RECORDED_NAME
from tracin_core.errors import InputError, NonFiniteError

MANIFEST = "training.json"


class RecordTraining:
    """A training that writes `model_epoch_<N>.pt`, epoch 0 included, and `training.json` when it ends.

    Each checkpoint holds the weights, the optimiser's state with the learning rate in force, the sum of the rates of all steps so far (the
    weight of the integral form of TracIn; read off every `optimizer.step()`), and as `args` the settings given here and the rate that the
    training was set to, before any schedule. Files are written whole and load with `weights_only=True`. A training that fails leaves its
    checkpoints, and no `training.json`.

    Args:
        folder: new, or empty; it is made.
        model: of any device; wrappers of `torch.compile` and `DistributedDataParallel` are seen through when the files are read.
        optimizer: steps on the model's parameters. Where groups of parameters have different rates no single one is recorded, and the
            analysis asks for it.
        prefix: of the files' names.
        loss: by its name here (margin, ghm, cross_entropy, squared_error, ...: docs/settings.md), where it is one of them.
        settings: of the training, in plain values: batch_size, margin, seed, examples (of an epoch), ...; recorded as the checkpoints'
            `args`, where the analysis looks for what it would else ask for.

    Raises:
        InputError: the folder has such checkpoints already, or a setting is not a plain value.
    """

    def __init__(
        self,
        folder: str | Path,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        prefix: str = "model_epoch_",
        loss: str | None = None,
        **settings: str | float | int | bool | None,
    ) -> None:
        for name, value in settings.items():
            if not isinstance(value, str | float | int | bool | None):
                raise InputError(f"The setting {name} is a {type(value).__name__}; give a text, a number, true, false or None.")
        self.folder, self.prefix = Path(folder), prefix
        if any(self.folder.glob(f"{prefix}*")) or (self.folder / MANIFEST).exists():
            raise InputError(f"'{self.folder.name}' holds checkpoints of a training already; name a new folder.")
        named = {} if loss is None else {"loss_type": RECORDED_NAME.get(loss, loss)}
        self._model, self._optimizer, self._settings = model, optimizer, {**named, **settings}
        self._epoch, self._steps = 0, 0
        self._rates = self._rates_now()  # of the newest step, by group
        at_first = {float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups}  # what a scheduler scales
        self._rate_at_first = at_first.pop() if len(at_first) == 1 else None
        self._rate_sum: float | None = 0.0
        self._history: list[dict[str, float | None]] = []
        self._hook: Any = None

    def __enter__(self) -> Self:
        self._hook = self._optimizer.register_step_pre_hook(self._count)
        self._save({})
        return self

    def __exit__(self, kind: type[BaseException] | None, failure: BaseException | None, trace: TracebackType | None) -> None:
        self._hook.remove()
        if kind is None:
            manifest = {"settings": self._settings, "history": self._history, "steps": self._steps, "recorded_by": "RecordTraining"}
            write_json(self.folder / MANIFEST, manifest)

    def epoch(self, **measured: float | torch.Tensor) -> None:
        """One more epoch is over: its checkpoint is on disk.

        Args:
            measured: train_loss, validation_loss, train_accuracy, validation_accuracy, or others, as numbers; tensors of one number too.

        Raises:
            NonFiniteError: one of them is not a number any more; the checkpoint is not written.
        """
        told = {name: float(value.detach() if isinstance(value, torch.Tensor) else value) for name, value in measured.items()}
        for name, value in told.items():
            if not torch.isfinite(torch.tensor(value)):
                raise NonFiniteError(f"{name} is {value} after epoch {self._epoch + 1}; choose a smaller learning rate.")
        self._epoch += 1
        self._save(told)

    def _count(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Before a step: its rates are those that it is made with, whatever a scheduler does afterwards."""
        self._steps += 1
        self._rates = self._rates_now()
        rate = self._rate()
        self._rate_sum = None if rate is None or self._rate_sum is None else self._rate_sum + rate

    def _rates_now(self) -> list[float]:
        return [float(group["lr"]) for group in self._optimizer.param_groups]

    def _rate(self) -> float | None:
        return self._rates[0] if len(set(self._rates)) == 1 else None

    def _save(self, measured: dict[str, float]) -> None:
        state = self._optimizer.state_dict()
        for group, rate in zip(state["param_groups"], self._rates, strict=False):  # groups may have been added since
            group["lr"] = rate  # that of the steps of this epoch, not what a scheduler made of it for the next
        self._history.append({"epoch": self._epoch, "rate_sum": self._rate_sum, **measured})
        content = {
            "epoch": self._epoch,
            "model_state_dict": self._model.state_dict(),
            "optimizer_state_dict": state,
            "train_loss_main": measured.get("train_loss"),
            "val_loss_main": measured.get("validation_loss"),
            "train_accuracy": measured.get("train_accuracy"),
            "val_accuracy": measured.get("validation_accuracy"),
            "rate_sum": self._rate_sum,
            "args": {"learning_rate": self._rate_at_first, **self._settings},
        }
        buffer = io.BytesIO()
        torch.save(content, buffer)
        write_whole(self.folder / f"{self.prefix}{self._epoch}.pt", [buffer.getvalue()])
