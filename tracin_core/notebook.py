"""TracIn in a notebook: a model, its checkpoints and samples that are in memory, asked as one asks a run of a workspace.

    tracin = TracIn(model, [(state_dict, learning_rate), ...], (x, y), (test_x, test_y), loss="margin", margin=10.0)
    tracin.self_influence()
    proponents, opponents = tracin.top(test, k=20)

The same kernels as a run's, held in memory; every question is the algebra of `scores.view` on them.
"""

import builtins
import copy
import html
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, get_args

import numpy as np
import pandas as pd
import psutil
from rich.console import Console
from rich.progress import Progress as Bar

from tracin_core.data.checks import shown
from tracin_core.data.samples import (
    every_draw,
    listed_draws,
    pairs_of,
    random_draws,
    require_classes,
    stratified_pairs,
    with_labels,
)
from tracin_core.engine import in_memory
from tracin_core.engine.health import check_model
from tracin_core.engine.kernel import kernel_groups
from tracin_core.errors import (
    BatchCoupledModelError,
    CheckpointError,
    DataError,
    MachineError,
    ModelError,
    NotFoundError,
    OutputShapeError,
    RecipeError,
    ViewError,
)
from tracin_core.recipe import ClassificationTask, Cotangent, RankingTask, RegressionTask, TaskSection
from tracin_core.records.checkpoint_files import list_checkpoints
from tracin_core.scores.examples import TestQuantity
from tracin_core.scores.exclusions import PairMode
from tracin_core.scores.influence import Kernels, Measure
from tracin_core.scores.losses import PairLoss
from tracin_core.scores.recorded import PAIR_LOSSES
from tracin_core.scores.sample_losses import SETTINGS, SampleLoss, SampleLossName
from tracin_core.scores.selection import SuspectScore
from tracin_core.scores.view import View

Weights = Literal["learning_rate", "uniform"] | Sequence[float]
Pairs = Literal["all", "drawn"] | Sequence[tuple[str, str]]
Task = Literal["ranking", "classification", "regression"]
KERNEL_BUDGET: Final = 256 * 2**20  # bytes of a checkpoint's kernels; beyond it, layers are kept as `rest` and `last`
TASKS: Final[dict[str, TaskSection]] = {
    "ranking": RankingTask(),
    "classification": ClassificationTask(),
    "regression": RegressionTask(),
}
TARGETS: Final = {"ranking": ("target", "angle", "label"), "classification": ("target", "label"), "regression": ("target",)}
LOSSES: Final = {**PAIR_LOSSES, **{name: name for name in get_args(SampleLossName)}}
DECISIVE: Final = ("deterministic", "batch_coupling", "products")  # without which the numbers mean nothing
PREFIX: Final = "model_epoch_"


class TracIn:
    """The influences of training examples on tests, summed over checkpoints; computed once, when this is made.

    influence(e, e') = sum_c w_c <grad L(e'; theta_c), grad L(e; theta_c)> (Pruthi et al. 2020, arXiv 2002.08484), w_c the learning rate of
    checkpoint c. With a ranking loss the examples are pairs of samples whose targets differ, with any other the samples themselves.

    Args:
        model: of any mode and on any device; it is copied, and never changed.
        checkpoints: state dicts, dictionaries of a training, or paths (never unpickled here), each by itself or as (checkpoint, learning
            rate); or the path of a folder of `model_epoch_<N>` files. All of them are summed, an epoch 0 too.
        train, test: `(x, y)`, `(x, y, ids)`, `(a DataFrame of samples, x)` or a torch Dataset of (input, target). Targets of a ranking
            are numbers such as angles, of a classification whole numbers that are places among the outputs. None: tests come later, see
            `against`.
        loss: a loss of pairs (`scores/losses.py`; standard is margin) or of samples (`scores/sample_losses.py`), which decides the task;
            None: as the last checkpoint records.
        learning_rates: one per checkpoint, where they do not come with them.
        weights: w_c: learning_rate, uniform (1), or numbers.
        pairs: what was trained on: `all` unordered pairs, as `drawn` by a training from `draw_seed`, or pairs of training ids.
        test_pairs: how many, spread over the gaps between targets, or pairs of test ids; None: all.
        kernel: of several outputs: `label_logit`, small, or `outputs`, which leaves every loss of a sample free; None: the former where
            the loss allows.
        batch_size: samples per backward pass; it may change the last bits of the result.
        progress: True: a bar in a notebook or terminal; a function is told how many of how many kernels are done.
        settings: of the loss: margin, ghm_bins, ghm_alpha, ghm_batch; smoothing, gamma, q, delta. What the loss needs and neither the call
            nor the last checkpoint says is asked for, not guessed.

    Raises:
        InputError: checkpoints, data or settings cannot be used; says which, and what to do.
        ModelError: the model has no exact per-sample gradients as it is.
        MachineError: the kernels do not fit into memory.
    """

    def __init__(
        self,
        model: in_memory.Model,
        checkpoints: Sequence[Any] | str | Path,
        train: Any,
        test: Any = None,
        *,
        loss: str | None = None,
        learning_rates: Sequence[float] | None = None,
        weights: Weights = "learning_rate",
        pairs: Pairs = "all",
        draw_seed: int | None = None,
        test_pairs: int | Sequence[tuple[str, str]] | None = None,
        kernel: Literal["label_logit", "outputs"] | None = None,
        batch_size: int = 32,
        progress: bool | Callable[[int, int], None] = True,
        **settings: float,
    ) -> None:
        if isinstance(checkpoints, str | Path) and Path(checkpoints).is_dir():
            checkpoints = list_checkpoints(Path(checkpoints), PREFIX)
        self._model = copy.deepcopy(model).eval()
        self._taken = in_memory.snapshots(self._model, checkpoints, learning_rates)  # type: ignore[arg-type]
        self._weights, self._progress = weights, progress
        self.checkpoint_weights(weights)  # refused now rather than after the computation
        self.loss = chosen_loss(loss, settings, self._taken[-1])
        self.task: Task = task_of(self.loss)
        self._pairs, self._draw_seed, self._test_pairs = pairs, draw_seed, test_pairs
        self._given_train = in_memory.side_of("train", train, TARGETS[self.task])
        self._outputs = self._output_count()
        self._engine = in_memory.KernelSettings(self._cotangent(kernel), {}, batch_size)
        self._train, tests = self._labelled(test)
        self._engine = in_memory.KernelSettings(self._engine.cotangent, self._layer_groups(tests), batch_size)
        self._require_memory(self._train.count, 0 if tests is None else tests.count)
        self._health = self._checked()
        self._digest = self._train.digest()
        self._compute(tests)

    # ---- questions -------------------------------------------------------------------------------------------------------------

    def self_influence(self) -> pd.Series:
        """sum_c w_c |grad L(e; theta_c)|^2 of every training example, by its id; high ones are often mislabelled or odd."""
        return pd.Series(self._view.self_influence(), index=self._index("train"), name="self_influence")

    def influence(self, test: Any = None) -> pd.Series | pd.DataFrame:
        """The influence of every training example on one test (a Series), or on all of them: training examples x tests.

        Args:
            test: a test's id; of a pair also its two sample ids; None: all tests; or other test data, see `against`.

        Raises:
            NotFoundError: no such test.
            ViewError: there is no test, or all of them would be too many numbers.
        """
        if test is None:
            self._require_tests()
            table = self._view.influence()
            return pd.DataFrame(table, index=self._index("train"), columns=self._index("test"))
        if not is_name(test):
            return self.against(test).influence()
        name = self._test_id(test)
        return pd.Series(self._view.influence(name), index=self._index("train"), name=name)

    def top(self, test: str | tuple[str, str], k: int = 20) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The k strongest proponents and opponents of a test, see `View.top`."""
        return self._view.top(self._test_id(test), k)

    def exclusions(
        self,
        threshold: float = -5.0,
        min_occurrences: int = 3,
        max_exclusions: int | None = 50,
        pair_mode: PairMode = "ranking_pair",
    ) -> pd.DataFrame:
        """Training examples that harm at least `min_occurrences` tests by more than the threshold, see `View.exclusions`."""
        self._require_tests()
        return self._view.exclusions(threshold, min_occurrences, max_exclusions, pair_mode)

    def suspects(
        self, score: SuspectScore = "self_influence", threshold: float | None = None, quantile: float | None = None
    ) -> pd.DataFrame:
        """Training examples to look at: those whose score lies above a threshold or quantile, see `View.suspects`."""
        return self._view.suspects(score, threshold, quantile)

    def view(
        self,
        *,
        loss: str | None = None,
        weights: Weights | None = None,
        measure: Measure = "dot",
        test_quantity: TestQuantity = "loss",
        layers: Sequence[str] | None = None,
        **settings: float,
    ) -> View:
        """The scores under other settings, from the same kernels: no gradient is computed. None: as this was made.

        Raises:
            ViewError: a setting has no meaning here, or the kernel fixes it.
            RecipeError: the loss lacks a setting.
        """
        chosen = self.loss
        if loss is not None or settings:
            name = loss or self.loss.name
            shared_settings = set(settings_of(self.loss.name)) & set(settings_of(LOSSES.get(name, "")))
            kept = {key: getattr(self.loss, key) for key in shared_settings}
            chosen = chosen_loss(name, {**kept, **settings}, self._taken[-1])
        if task_of(chosen) != self.task:
            raise ViewError(f"The loss {chosen.name} is not one of {self.task}; build TracIn anew for another task.")
        shared: dict[str, Any] = {
            "checkpoint_weights": self.checkpoint_weights(self._weights if weights is None else weights),
            "checkpoint_names": [snapshot.name for snapshot in self._taken],
            "measure": measure,
            "test_quantity": test_quantity,
            "layers": None if layers is None else [self._layer(name) for name in layers],
        }
        train, test = self.train_samples, self.test_samples
        if isinstance(chosen, SampleLoss):
            target = "target" if self.task == "regression" else "label"
            cotangent = self._engine.cotangent
            return View.of_samples(train, test, self._kernels, loss=chosen, cotangent=cotangent, target=target, **shared)
        sides = self._pair_tables(chosen)
        return View.of_pairs(*sides, self._kernels, loss=chosen, train_samples=train, test_samples=test, **shared)

    def against(self, test: Any) -> "TracIn":
        """The same with other tests; only what concerns them is computed.

        Raises:
            DataError: the tests cannot be used, or the training inputs are not what they were.
        """
        if self._train.digest() != self._digest:
            raise DataError(
                f"The inputs of the {self._train.count} training samples were changed in memory since TracIn was built; build it again."
            )
        other = copy.copy(self)
        train, tests = self._labelled(test)
        if tests is None:
            raise DataError(f"There are no tests to ask about; give {in_memory.FORMS}.")
        if self.task == "classification" and not train.samples["label"].equals(self._train.samples["label"]):
            raise DataError(
                "With these tests the names of the classes stand for other outputs than before; give the classes as whole numbers."
            )
        self._require_memory(0, tests.count)
        other._train = train
        other._compute(tests, known=self._kernels)
        return other

    # ---- what it holds ---------------------------------------------------------------------------------------------------------

    @property
    def layers(self) -> list[str]:
        """The layer groups that the kernels are kept by."""
        return list(self._engine.groups)

    @property
    def examples(self) -> pd.DataFrame:
        """The training examples, one row each: pairs, or samples."""
        return self._view.train.table

    @property
    def tests(self) -> pd.DataFrame:
        """The tests, one row each."""
        return self._view.test.table

    @property
    def train_samples(self) -> pd.DataFrame:
        return self._train.samples

    @property
    def test_samples(self) -> pd.DataFrame:
        return self._train.samples.iloc[:0] if self._test is None else self._test.samples

    @property
    def checkpoints(self) -> pd.DataFrame:
        """One row per checkpoint: checkpoint, epoch, learning_rate, recorded_rate, weight."""
        return pd.DataFrame(
            {
                "checkpoint": [snapshot.name for snapshot in self._taken],
                "epoch": pd.array([snapshot.epoch for snapshot in self._taken], dtype="Int64"),
                "learning_rate": np.array([snapshot.learning_rate for snapshot in self._taken], dtype=float),
                "recorded_rate": np.array([snapshot.recorded_rate for snapshot in self._taken], dtype=float),
                "weight": self.checkpoint_weights(self._weights),
            }
        )

    def health(self) -> pd.DataFrame:
        """What was tried on a few samples at the last checkpoint, and the dead tests: check, passed, value, detail."""
        rows = [(check.name, check.passed, check.value, check.detail) for check in self._health]
        if self._test is not None:
            dead = self._view.dead_tests
            told = f"{dead.sum()} of {len(dead)} tests have no gradient under {self.loss.describe()}."
            rows.append(("dead_tests", not dead.any(), float(dead.sum()), told))
        other = next((one.optimizer for one in self._taken if one.optimizer not in (None, "SGD")), None)
        if other is not None:
            told = (
                f"The checkpoints are of a training by {other}, and these are the scores of SGD; a run of a workspace can divide the "
                f"gradients by Adam's denominator (precondition = 'adam')."
            )
            rows.append(("sgd_formula", False, 1.0, told))
        return pd.DataFrame(rows, columns=["check", "passed", "value", "detail"])

    def checkpoint_weights(self, weights: Weights) -> np.ndarray[Any, np.dtype[np.float64]]:
        """w_c of every checkpoint.

        Raises:
            CheckpointError: a learning rate is missing.
            ViewError: there is no such rule, or the numbers do not match the checkpoints.
        """
        if not isinstance(weights, str):
            given = np.asarray(weights, dtype=float)
            if given.shape != (len(self._taken),) or not np.isfinite(given).all():
                raise ViewError(f"{given.size} weights were given for {len(self._taken)} checkpoints; give one finite number each.")
            return given
        if weights == "uniform":
            return np.ones(len(self._taken))
        if weights != "learning_rate":
            raise ViewError(f"There are no weights '{shown(weights)}'; choose learning_rate, uniform, or a list of numbers.")
        lacking = [snapshot.name for snapshot in self._taken if snapshot.learning_rate is None]
        if lacking:
            raise CheckpointError(
                f"{len(lacking)} of {len(self._taken)} checkpoints have no learning rate, first '{shown(lacking[0])}'; give each as "
                f"(checkpoint, rate), or learning_rates=[...], or choose weights='uniform'."
            )
        return np.array([snapshot.learning_rate for snapshot in self._taken], dtype=float)

    def __repr__(self) -> str:
        return f"TracIn({'; '.join(f'{name}: {value}' for name, value in self._facts().items())})"

    def _repr_html_(self) -> str:
        """A table of what it holds; nothing in it is taken as HTML."""
        rows = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th><td style='text-align:left'>{html.escape(value)}</td></tr>"
            for name, value in self._facts().items()
        )
        return f"<table><caption><b>TracIn</b></caption><tbody>{rows}</tbody></table>"

    def _facts(self) -> dict[str, str]:
        noun = self._view.train.noun
        weighed = zip(self.checkpoints["checkpoint"], self.checkpoints["weight"], strict=True)
        failed = self.health().query("not passed")
        size = sum(value.nbytes for value in vars(self._kernels).values())
        of_tests = f"{len(self.tests):,} {noun}s of {len(self.test_samples):,} samples" if self._test is not None else "none yet"
        return {
            "task": f"{self.task}, {self.loss.describe()}",
            "training": f"{len(self.examples):,} {noun}s of {len(self.train_samples):,} samples",
            "tests": of_tests,
            "checkpoints": ", ".join(f"{shown(name)} (weight {weight:g})" for name, weight in weighed),
            "layers": ", ".join(self.layers),
            "kernels": f"{size / 2**20:.1f} MiB in memory" if size >= 2**20 else f"{size / 2**10:.1f} KiB in memory",
            "health": "every check passed"
            if failed.empty
            else " ".join(f"{row.check}: {row.detail}" for row in failed.itertuples()),
        }

    # ---- how it comes about ----------------------------------------------------------------------------------------------------

    def _output_count(self) -> int:
        """How many outputs a sample has.

        Raises:
            OutputShapeError: not as many as the loss reads.
        """
        in_memory.load(self._model, self._taken[-1])
        shape = in_memory.probe(self._model, "train", self._given_train.inputs)
        count = int(np.prod(shape))
        wanted = {"binary_cross_entropy": (1, 1), "cross_entropy": (2, None), "label_smoothing": (2, None)}
        least, most = wanted.get(self.loss.name, (1, None if self.task == "classification" else 1))
        if len(shape) > 1 or count < least or (most is not None and count > most):
            needs = "one output" if most == 1 else f"at least {least} outputs"
            raise OutputShapeError(
                f"The model gives each sample outputs of shape {shape}, but {self.loss.name} reads {needs} per sample; choose another "
                f"loss, or the model that belongs to this one."
            )
        return count

    def _cotangent(self, asked: str | None) -> Cotangent:
        """Whose gradients the kernels hold products of."""
        if self._outputs == 1:
            return "score"
        suited = isinstance(self.loss, SampleLoss) and self.loss.is_of_label_probability
        if asked not in (None, "label_logit", "outputs"):
            raise ViewError(f"There is no kernel '{shown(asked)}'; choose label_logit or outputs.")
        if asked == "label_logit" and not suited:
            raise ViewError(
                f"{self.loss.name} depends on more than logit(p_y), which is all that it keeps; choose kernel='outputs'."
            )
        return "outputs" if asked == "outputs" or not suited else "label_logit"

    def _labelled(self, test: Any) -> tuple[in_memory.Gathered, in_memory.Gathered | None]:
        """Both sides, with the columns that the task needs.

        Raises:
            DataError: a target is not what the task needs, or a label no place among the outputs.
        """
        train = self._given_train
        sides = [train] if test is None else [train, in_memory.side_of("test", test, TARGETS[self.task])]
        classes = max(self._outputs, 2) if self.task == "classification" else None
        if classes is not None:
            for side in sides:
                refuse_beyond(side.samples, classes)
        both = with_labels(pd.concat([side.samples for side in sides], ignore_index=True), TASKS[self.task], classes=classes)
        parts = both.iloc[: train.count], both.iloc[train.count :]
        labelled = [in_memory.Gathered(side.inputs, part.reset_index(drop=True)) for side, part in zip(sides, parts, strict=False)]
        if self.task == "ranking":
            for side in labelled:
                require_classes(side.samples)
        if len(labelled) == 2:
            in_memory.probe(self._model, "test", labelled[1].inputs)
        return labelled[0], labelled[1] if len(labelled) == 2 else None

    def _layer_groups(self, tests: in_memory.Gathered | None) -> dict[str, tuple[str, ...]]:
        each = self._outputs if self._engine.cotangent == "outputs" else 1
        train, test = each * self._train.count, 0 if tests is None else each * tests.count
        return kernel_groups(self._model, cells=train * (train + test) + test * test, budget=KERNEL_BUDGET)

    def _require_memory(self, train: int, test: int) -> None:
        """Raises MachineError where kernels of so many new samples do not fit."""
        each = self._outputs if self._engine.cotangent == "outputs" else 1
        cells = each**2 * (train * train + test * self._train.count + test * test)
        size = max((parameter.element_size() for parameter in self._model.parameters()), default=4)
        needed, free = cells * size * len(self._engine.groups) * len(self._taken), psutil.virtual_memory().available
        if needed > free:
            raise MachineError(
                f"The kernels of {self._train.count:,} training and {test:,} test samples at {len(self._taken)} checkpoints need "
                f"{needed / 2**30:.1f} GiB of memory, but {free / 2**30:.1f} GiB are free; use fewer samples or checkpoints."
            )

    def _checked(self) -> list[Any]:
        """The engine's checks of this model.

        Raises:
            ModelError: one failed without which the numbers would mean nothing.
        """
        in_memory.load(self._model, self._taken[-1])
        checks = check_model(self._model, in_memory.first_samples(self._train.inputs, 8))
        for check in checks:
            if check.name in DECISIVE and not check.passed:
                kind = BatchCoupledModelError if check.name == "batch_coupling" else ModelError
                raise kind(check.detail)
        return checks

    def _compute(self, tests: in_memory.Gathered | None, known: Kernels | None = None) -> None:
        """The kernels are in memory, and the view of them."""
        model, taken, engine, train = self._model, self._taken, self._engine, self._train
        whole = len(taken) * ((known is None) + 2 * (tests is not None))
        with told(self._progress, whole) as tell:
            own = in_memory.kernels(model, taken, engine, train, None, tell) if known is None else known.train_train
            scores = in_memory.outputs(model, taken, engine, train) if known is None else known.train_outputs
            if tests is None:
                none = np.zeros((*own.shape[:2], 0, own.shape[3]), own.dtype)
                self._kernels = Kernels(own, none, none[..., :0], scores, scores[:, :0])
            else:
                cross = in_memory.kernels(model, taken, engine, tests, train, tell)
                theirs = in_memory.kernels(model, taken, engine, tests, None, tell)
                self._kernels = Kernels(own, cross, theirs, scores, in_memory.outputs(model, taken, engine, tests))
        self._test = tests
        self._view = self.view()

    def _pair_tables(self, loss: PairLoss) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The training and test pairs; under `ghm_legacy` a pair keeps the orientation in which it was drawn."""
        oriented = loss.name == "ghm_legacy"
        drawn = self._draws()
        train, test = (
            pairs_of(samples, draws, oriented=oriented)
            for samples, draws in zip((self.train_samples, self.test_samples), drawn, strict=True)
        )
        if train.empty:
            raise ViewError(f"None of the {len(drawn[0])} training pairs joins two different targets; list others.")
        return train, stratified_pairs(test, self._test_pairs) if isinstance(self._test_pairs, int) else test

    def _draws(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The pairs of positions of both sides."""
        train, test, pairs = self.train_samples, self.test_samples, self._pairs
        if isinstance(pairs, str) and pairs not in ("all", "drawn"):
            raise ViewError(f"There is no pair universe '{shown(pairs)}'; choose all, drawn, or a list of pairs of ids.")
        if pairs == "drawn" and self._draw_seed is None:
            raise RecipeError("Drawn pairs are drawn again from the training's seed, which is not told; give draw_seed.")
        if pairs == "drawn":
            ours, theirs = random_draws((len(train), len(test)), int(self._draw_seed or 0))
        else:
            ours = every_draw(len(train)) if isinstance(pairs, str) else listed_draws(train, pairs)
            theirs = every_draw(len(test))
        listed = self._test_pairs
        return ours, theirs if listed is None or isinstance(listed, int) or self._test is None else listed_draws(test, listed)

    # ---- names -----------------------------------------------------------------------------------------------------------------

    def _index(self, side: Literal["train", "test"]) -> "pd.Index[Any]":
        table = self.examples if side == "train" else self.tests
        names: pd.Index[Any] = pd.Index(table["id"].to_numpy(dtype=object), name=side)
        return names

    def _test_id(self, test: str | tuple[str, str]) -> str:
        """The id of a test that is named by it, or of a pair by its two samples in either order."""
        self._require_tests()
        if isinstance(test, str):
            return test
        if "id1" not in self.tests:
            raise NotFoundError(f"The tests are single samples, so ('{shown(test[0])}', '{shown(test[1])}') is none; give one id.")
        table = self.tests
        for first, second in (test, test[::-1]):
            found = table["id"][(table["id1"] == first) & (table["id2"] == second)]
            if len(found):
                return str(found.iloc[0])
        raise NotFoundError(f"There is no test pair of '{shown(test[0])}' and '{shown(test[1])}'; choose one of tracin.tests.")

    def _require_tests(self) -> None:
        if self._test is None:
            raise ViewError("There are no tests to have an influence on; give test=(x, y), or ask tracin.against((x, y)).")

    def _layer(self, name: str) -> int:
        if name not in self.layers:
            raise ViewError(f"There is no layer '{shown(name)}'; choose from {', '.join(self.layers)}.")
        return self.layers.index(name)


def is_name(test: Any) -> bool:
    """Whether this names a test, rather than being data."""
    return isinstance(test, str) or (isinstance(test, tuple) and len(test) == 2 and all(isinstance(one, str) for one in test))


def refuse_beyond(samples: pd.DataFrame, classes: int) -> None:
    """Raises DataError for the first number that is no place among so many outputs: another numbering would be a guess."""
    targets = samples["target"]
    if not pd.api.types.is_numeric_dtype(targets):
        return
    wrong = ~targets.isin(range(classes)) & targets.notna()
    if wrong.any():
        row = int(wrong.to_numpy().argmax())
        raise DataError(
            f"The label of '{shown(samples['id'].iloc[row])}' is {targets.iloc[row]}, but the model tells {classes} classes apart, "
            f"numbered 0 to {classes - 1}; correct the labels, or choose the model that was trained on them."
        )


# ---- the loss ---------------------------------------------------------------------------------------------------------------


def task_of(loss: PairLoss | SampleLoss) -> Task:
    """What a loss is the loss of."""
    if isinstance(loss, PairLoss):
        return "ranking"
    return "classification" if loss.is_of_label else "regression"


def settings_of(name: str) -> tuple[str, ...]:
    """The settings that a loss needs."""
    if name in SETTINGS:
        return (SETTINGS[name][0],)
    if name not in PAIR_LOSSES:
        return ()
    return ("margin", "ghm_bins", "ghm_alpha", "ghm_batch") if name.startswith("ghm") else ("margin",)


def chosen_loss(name: str | None, settings: Mapping[str, float], last: in_memory.Snapshot) -> PairLoss | SampleLoss:
    """The loss of this name, with the settings that were given, else with those that the last checkpoint records.

    Raises:
        RecipeError: there is no such loss, none is said, or a setting is missing or not one of it.
    """
    asked = last.arguments.get("loss_type") if name is None else name
    known = LOSSES.get(str(asked))
    if known is None:
        told = f"'{shown(last.name)}' records none that is known here" if name is None else f"there is no loss '{shown(name)}'"
        raise RecipeError(f"A loss is needed, and {told}; give loss= one of {', '.join(LOSSES)}.")
    own = settings_of(known)
    strange = next((key for key in settings if key not in own), None)
    if strange is not None:
        raise RecipeError(f"The loss {known} has no setting '{shown(strange)}'; its settings are: {', '.join(own) or 'none'}.")
    recorded = {**last.arguments, "ghm_batch": last.arguments.get("batch_size")}
    values = {key: settings.get(key, recorded.get(key)) for key in own}
    lacking = [key for key, value in values.items() if value is None]
    if lacking:
        raise RecipeError(
            f"The loss {known} needs {', '.join(lacking)}, which decides its numbers and '{shown(last.name)}' does not record; give "
            f"{', '.join(f'{key}=...' for key in lacking)} as in training."
        )
    kind: Any = PairLoss if known in PAIR_LOSSES else SampleLoss
    loss: PairLoss | SampleLoss = kind(name=known, **values)
    return loss


# ---- progress ---------------------------------------------------------------------------------------------------------------


@dataclass
class NotebookBar:
    """A bar that a notebook draws."""

    done: int
    whole: int
    handle: Any = field(default=None, repr=False)

    def advance(self) -> None:
        self.done += 1
        self.handle.update(self)

    def __repr__(self) -> str:
        return f"TracIn: {self.done} of {self.whole} kernels"

    def _repr_html_(self) -> str:
        return f"<progress value='{self.done}' max='{self.whole}'></progress> {self!r}"


@contextmanager
def told(progress: bool | Callable[[int, int], None], whole: int) -> Iterator[Callable[[], None]]:
    """What to call whenever one of so many kernels is done: a bar in a notebook or a terminal, silence where neither is there."""
    if callable(progress):
        done = iter(range(1, whole + 1))
        yield lambda: progress(next(done), whole)
        return
    console = Console(stderr=True)
    if not progress or not (console.is_jupyter or sys.stderr.isatty()):
        yield lambda: None
    elif console.is_jupyter:
        bar = NotebookBar(0, whole)
        bar.handle = builtins.display(bar, display_id=True)  # type: ignore[attr-defined]  # IPython puts it there
        yield bar.advance
    else:
        with Bar(console=console, transient=True) as drawn:
            row = drawn.add_task("TracIn", total=whole)
            yield lambda: drawn.advance(row)
