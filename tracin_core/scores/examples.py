"""Examples: what a loss is computed on, as sparse vectors over the positions of a kernel.

The gradient of example e's loss at checkpoint c is sum_k a_ck(e) g_c(position_k(e)), with g the output gradients whose products the kernel
holds and a = dL/d(output). A pair stands on the two samples it compares, a = (dL/ds_i, -dL/ds_i); a sample stands on itself, or, where
the kernel keeps all of its outputs apart, on each of them. Everything about a loss is here; `influence` knows vectors and kernels alone.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import sparse

from tracin_core.errors import ViewError
from tracin_core.recipe import Cotangent
from tracin_core.scores.losses import GhmTable, PairLoss, ghm_table, ghm_weights, pair_derivative, pair_loss
from tracin_core.scores.sample_losses import (
    SampleLoss,
    label_logit,
    label_logit_cotangent,
    label_logit_derivative,
    sample_derivative,
    sample_loss,
)

Array = npt.NDArray[np.float64]
Rows = slice | npt.NDArray[np.int64]
TestQuantity = Literal["loss", "score_difference"]
ALL: Final = slice(None)
NUMBERS: Final = "targets are numbers, not labels"
ALL_OUTPUTS: Final = 'compute a run that keeps all outputs ("Keep" on the page Compute; in a recipe [task] kernel = "outputs")'
NO_FEATURES: Final = (
    "with several outputs they need the features of the last layer, which no kernel keeps apart; ask for a calibration"
)


class Examples(ABC):
    """The examples of one side, N of them, at C checkpoints.

    Attributes:
        table: one row per example, with its id.
        samples: the samples of this side, in the order of the outputs.
        shown: the columns of the table that name an example to a reader.
    """

    table: pd.DataFrame
    samples: pd.DataFrame
    shown: tuple[str, ...]
    noun: str

    @property
    @abstractmethod
    def ends(self) -> npt.NDArray[np.int64]:
        """Positions of each example in the kernel: [N, E]."""

    @property
    @abstractmethod
    def members(self) -> npt.NDArray[np.int64]:
        """The samples that each example is formed of, as rows of `samples`: [N, 1 or 2]."""

    @property
    @abstractmethod
    def positions(self) -> int:
        """How many positions the kernel of this side must have."""

    @abstractmethod
    def coefficients(self, rows: Rows = ALL) -> Array:
        """a of these examples on their positions: [C, rows, E]."""

    @property
    @abstractmethod
    def derivatives(self) -> Array:
        """One number per example that is 0 exactly where its gradient is: [C, N]."""

    @property
    @abstractmethod
    def losses(self) -> Array:
        """The loss of each example at each checkpoint: [C, N]."""

    @property
    @abstractmethod
    def described(self) -> str:
        """The loss and its settings in words."""

    @property
    def fixed(self) -> dict[str, str]:
        """The what-ifs that the kernel leaves no room for, each with its reason; empty where everything is free."""
        return {}

    def __len__(self) -> int:
        return len(self.table)

    def rows_of(self, name: str) -> list[int]:
        """The rows of this id: none, one, or several where joined ids of different pairs read alike."""
        return np.flatnonzero((self.table["id"] == name).to_numpy(dtype=bool)).tolist()

    @property
    def multiplicity(self) -> npt.NDArray[np.int64]:
        """How many copies of each example an epoch trains on: [N]."""
        if "first" not in self.table:  # samples: a column of that name would be somebody's metadata
            return np.ones(len(self.table), dtype=np.int64)
        return self.table["multiplicity"].to_numpy() if "multiplicity" in self.table else np.ones(len(self.table), dtype=np.int64)

    def incidence(self, weights: Array, positions: int) -> Any:
        """w_c a_c(e) over (checkpoint, position), checkpoints in their order: sparse [N, C positions]."""
        ends = self.ends
        shape = (len(ends), len(weights), ends.shape[1])
        kind = np.int32 if max(int(np.prod(shape)), positions * len(weights)) < 2**31 else np.int64
        values, columns = np.empty(shape), np.empty(shape, dtype=kind)
        for c, weight in enumerate(weights):
            values[:, c] = weight * self.coefficients_at(c)
            columns[:, c] = ends + positions * c
        starts = shape[1] * shape[2] * np.arange(len(ends) + 1, dtype=kind)
        found = sparse.csr_array((values.ravel(), columns.ravel(), starts), shape=(len(ends), positions * len(weights)))
        found.eliminate_zeros()  # half of a hinge's examples have no gradient
        return found

    def coefficients_at(self, checkpoint: int) -> Array:
        """a of every example at one checkpoint: [N, E]."""
        return np.asarray(self.coefficients()[checkpoint])


@dataclass(frozen=True)
class PairExamples(Examples):
    """Ranking pairs under a pair loss.

    Args:
        outputs: the scores of the samples, [C, n].
        table: as `pair_table` makes it.
        densities: the training population's table per checkpoint, for GHM; see `density_tables`.
        strangers: pairs that are not members of that population (test pairs, relabelled pairs), [N]; None: none is.
    """

    table: pd.DataFrame
    samples: pd.DataFrame
    outputs: npt.NDArray[np.float32]
    loss: PairLoss
    densities: tuple[GhmTable, ...] = ()
    strangers: npt.NDArray[np.bool_] | None = None
    quantity: TestQuantity = "loss"
    shown: tuple[str, ...] = ("id", "id1", "id2", "angle1", "angle2")
    noun: str = "pair"

    @cached_property
    def ends(self) -> npt.NDArray[np.int64]:
        return self.table[["first", "second"]].to_numpy()

    @property
    def members(self) -> npt.NDArray[np.int64]:
        return self.ends

    @property
    def positions(self) -> int:
        return len(self.samples)

    def coefficients(self, rows: Rows = ALL) -> Array:
        slopes = self.derivatives[:, rows]
        return np.stack([slopes, -slopes], axis=2)

    def coefficients_at(self, checkpoint: int) -> Array:
        return np.asarray(self.derivatives[checkpoint, :, None] * np.array([1.0, -1.0]))

    @cached_property
    def _sides(self) -> tuple[Any, Any, Any]:
        return self.outputs[:, self.ends[:, 0]], self.outputs[:, self.ends[:, 1]], self.table["target"].to_numpy()

    @cached_property
    def derivatives(self) -> Array:
        """dL/ds_first: [C, N]. That of `score_difference`, -t (s_a - s_b), is -t: it never dies."""
        first, second, target = self._sides
        if self.quantity == "score_difference":
            return np.broadcast_to(-target.astype(float), first.shape).copy()
        return np.stack([pair_derivative(self.loss, a, b, target, u) for a, b, u in zip(first, second, self.weights, strict=True)])

    @cached_property
    def losses(self) -> Array:
        first, second, target = self._sides
        return np.stack([pair_loss(self.loss, a, b, target, u) for a, b, u in zip(first, second, self.weights, strict=True)])

    @cached_property
    def weights(self) -> Array:
        """Each pair's expected GHM weight at each checkpoint; 1 for other losses: [C, N]."""
        if not self.loss.is_ghm:
            return np.broadcast_to(np.float64(1), (len(self.outputs), len(self)))
        first, second, target = self._sides
        guests = np.zeros(len(self), dtype=bool) if self.strangers is None else self.strangers
        weights = np.empty((len(self.outputs), len(self)))
        for guest in (False, True):
            rows = np.flatnonzero(guests == guest)
            for c, (table, a, b) in enumerate(zip(self.densities, first, second, strict=True)):
                weights[c, rows] = ghm_weights(self.loss, table, a[rows], b[rows], target[rows], guest=guest)
        return weights

    @property
    def described(self) -> str:
        return self.loss.describe()


def density_tables(loss: PairLoss, outputs: npt.NDArray[np.float32], pairs: pd.DataFrame) -> tuple[GhmTable, ...]:
    """The density table of these training pairs at each checkpoint, drawn copies counted; empty for a loss that needs none."""
    if not loss.is_ghm:
        return ()
    first, second, target = outputs[:, pairs["first"]], outputs[:, pairs["second"]], pairs["target"].to_numpy()
    multiplicity = pairs["multiplicity"].to_numpy()
    return tuple(ghm_table(loss, a, b, target, multiplicity) for a, b in zip(first, second, strict=True))


@dataclass(frozen=True)
class SampleExamples(Examples):
    """Samples under a loss of their outputs.

    Args:
        outputs: [C, n], or [C, n, k].
        targets: labels, or numbers to meet.
        cotangent: whose gradients the kernel holds products of: `score`, the one output of each sample; `label_logit`, logit(p_y); or
            `outputs`, each of the k outputs by itself, position i k + c.
    """

    samples: pd.DataFrame
    outputs: npt.NDArray[np.float32]
    targets: npt.NDArray[Any]
    loss: SampleLoss
    cotangent: Cotangent
    quantity: TestQuantity = "loss"
    noun: str = "sample"

    def __post_init__(self) -> None:
        if self.cotangent not in get_args(Cotangent):
            raise ViewError(f"There is no cotangent '{self.cotangent}'; choose from {', '.join(get_args(Cotangent))}.")
        if self.cotangent == "label_logit" and not self.loss.is_of_label_probability:
            raise ViewError(
                f"This run keeps the kernel of logit(p_y), which fixes each sample's label; the loss {self.loss.name} depends on more "
                f"than p_y. Choose cross_entropy, focal or generalized_cross_entropy, or {ALL_OUTPUTS}."
            )
        if self.quantity == "score_difference" and not self.loss.is_of_label:
            raise ViewError(f"A score difference needs labels, but {self.loss.name} meets numbers; choose the test quantity loss.")

    @property
    def table(self) -> pd.DataFrame:  # type: ignore[override]
        return self.samples

    @property
    def shown(self) -> tuple[str, ...]:  # type: ignore[override]
        named = [name for name in ("label_name", "label" if self.loss.is_of_label else "target") if name in self.samples]
        return ("id", *named[:1])

    @cached_property
    def ends(self) -> npt.NDArray[np.int64]:
        if self.cotangent != "outputs":
            return np.arange(len(self.samples))[:, None]
        k = self.outputs.shape[2]
        return np.asarray(k * np.arange(len(self.samples))[:, None] + np.arange(k))

    @cached_property
    def members(self) -> npt.NDArray[np.int64]:
        return np.arange(len(self.samples))[:, None]

    @property
    def positions(self) -> int:
        return self.ends.size

    def coefficients(self, rows: Rows = ALL) -> Array:
        return self._slopes[:, rows]

    def coefficients_at(self, checkpoint: int) -> Array:
        return np.asarray(self._slopes[checkpoint])

    @cached_property
    def _slopes(self) -> Array:
        """[C, N, E]."""
        each = []
        for outputs in self.outputs:
            if self.quantity == "score_difference":
                each.append(self._margin_slopes(outputs))
            elif self.cotangent == "label_logit":
                each.append(label_logit_derivative(self.loss, outputs, self.targets)[:, None])
            else:
                each.append(sample_derivative(self.loss, outputs, self.targets).reshape(len(self), -1))
        return np.stack(each)

    def _margin_slopes(self, outputs: npt.NDArray[np.float32]) -> Array:
        """Of -logit(p_y), which falls as the sample is told better and never dies."""
        if self.cotangent == "label_logit":
            return np.full((len(self), 1), -1.0)
        return -label_logit_cotangent(outputs, self.targets).reshape(len(self), -1)

    @cached_property
    def derivatives(self) -> Array:
        return np.asarray(np.abs(self._slopes).max(axis=2))

    @cached_property
    def losses(self) -> Array:
        return np.stack([sample_loss(self.loss, outputs, self.targets) for outputs in self.outputs])

    @property
    def fixed(self) -> dict[str, str]:
        if self.cotangent == "outputs":
            apart = {
                "trak": "its margins are those of the kernel of logit(p_y); compute a run that keeps it",
                "representer_points": f"{NO_FEATURES} of a run that keeps the kernel of logit(p_y)",
            }
            return apart if self.loss.is_of_label else {"relabel": NUMBERS, "score_difference": NUMBERS, **apart}
        if self.cotangent == "score" and self.loss.is_of_label:
            return {}
        if self.cotangent == "score":
            return {"relabel": NUMBERS, "score_difference": NUMBERS, "trak": "a number has no margin"}
        kept = "the kernel is of logit(p_y), which fixes each sample's label"
        cure = ALL_OUTPUTS
        return {
            "loss": f"{kept}, so only losses of p_y are scalings of it (cross_entropy, focal, generalized_cross_entropy); {cure}",
            "relabel": f"{kept}; {cure}",
            "gauss_newton": f"the curvature of cross-entropy needs every output, and {kept}; choose fisher, or {cure}",
            "linearised_retraining": f"a replay follows every output, and {kept}; {cure}",
            "representer_points": f"{NO_FEATURES} of this run",
        }

    @cached_property
    def label_logits(self) -> Array:
        """logit(p_y): [C, n]."""
        return np.stack([label_logit(outputs, self.targets) for outputs in self.outputs])

    @property
    def described(self) -> str:
        return self.loss.describe()
