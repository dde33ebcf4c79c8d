"""What another label would change: pairs are rebuilt, and the influence of the difference follows from the same kernels.

Each pair of a relabelled sample keeps its two samples. Its target turns only if the new label crosses the partner's; it vanishes where the
labels are now equal, and is born where they no longer are.

    relabel_effect(x, l; e') = sum_c w_c (r_new - r_old)^T K_c a_e',   r = sum of a_e over the pairs e of x, each as often as it was drawn

Positive: the gradient of x under the new label lowers the loss of e' more than the one under its own. A first-order statement about
checkpoints that were trained on the old label. GHM densities stay those of the training; a rebuilt pair looks its weight up as a guest.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from tracin_core.errors import NotFoundError, ViewError
from tracin_core.scores.examples import PairExamples

Array = npt.NDArray[np.float64]
PAIR_KEYS = ["first", "second"]


@dataclass(frozen=True)
class RelabelCounts:
    """What became of the pairs of the relabelled samples, copies not counted."""

    turned: int
    vanished: int
    born: int
    unchanged: int


def relabelled(
    samples: pd.DataFrame, relabel: Mapping[str, int], classes: Mapping[int, Any], *, column: str = "angle"
) -> pd.DataFrame:
    """The samples with new labels, and what goes with them in the column that tells what a label stands for.

    Args:
        relabel: new label of each sample by its id.
        classes: what each label stands for.

    Raises:
        NotFoundError: no such sample.
        ViewError: no such label.
    """
    known = set(samples["id"])
    for sample, label in relabel.items():
        if sample not in known:
            raise NotFoundError(f"There is no training sample '{sample}' to relabel; choose one from the run's table of samples.")
        if label not in classes:
            raise ViewError(f"Sample '{sample}' cannot have the label {label}; this run's labels are {sorted(classes)}.")
    labels = [relabel.get(sample, label) for sample, label in zip(samples["id"], samples["label"], strict=True)]
    told = [
        classes[relabel[sample]] if sample in relabel else own for sample, own in zip(samples["id"], samples[column], strict=True)
    ]
    return samples.assign(label=labels, **{column: told})


def likeliest_others(outputs: npt.NDArray[Any], labels: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Of each sample the label that these outputs find most likely, but for its own: [n]. One output has two labels: the other one.

    Args:
        outputs: [n], or [n, k]; equals are told in the order of their labels.
    """
    given = np.asarray(outputs, dtype=np.float64)
    if given.ndim == 1 or given.shape[1] == 1:
        return np.asarray(1 - labels, dtype=np.int64)
    return np.asarray(np.where(np.arange(given.shape[1]) == labels[:, None], -np.inf, given).argmax(axis=1), dtype=np.int64)


def relabel_counts(old: pd.DataFrame, new: pd.DataFrame, places: Sequence[int]) -> RelabelCounts:
    """How the pairs of these samples changed from one table of pairs to the other."""
    both = _of(old, places).merge(_of(new, places), on=PAIR_KEYS, how="outer", suffixes=("_old", "_new"), indicator="side")
    met = both[both["side"] == "both"]
    turned = int((met["target_old"] != met["target_new"]).sum())
    return RelabelCounts(
        turned, int((both["side"] == "left_only").sum()), int((both["side"] == "right_only").sum()), len(met) - turned
    )


def rebuilt(old: pd.DataFrame, new: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """Which of the new pairs were born or turned, and so are no members of the population that was trained on."""
    targets = new[PAIR_KEYS].merge(old[[*PAIR_KEYS, "target"]], on=PAIR_KEYS, how="left")["target"].to_numpy(dtype=float)
    return np.asarray(targets != new["target"].to_numpy())


def _of(pairs: pd.DataFrame, places: Sequence[int]) -> pd.DataFrame:
    return pairs.loc[pairs[PAIR_KEYS].isin(list(places)).any(axis=1), [*PAIR_KEYS, "target"]]


def relabel_effects(known: PairExamples, draws: pd.DataFrame, labels: Sequence[int], towards: Array) -> Array:
    """sum_c (r_new - r_old)^T v_c of every sample under every one of these labels: [n, labels]; 0 at the label that a sample has.

    Args:
        known: the pairs under their own labels.
        draws: the pairs of positions that the training drew from, equal labels included.
        towards: w_c v_c, with v_c = K_c a_e' of a test (or their mean): [C, n].
    """
    oriented = known.loss.name == "ghm_legacy"
    ends = draws[PAIR_KEYS].to_numpy() if oriented else np.sort(draws[PAIR_KEYS].to_numpy(), axis=1)
    copies = draws["multiplicity"].to_numpy(dtype=float)
    own, others = known.samples["label"].to_numpy(), np.asarray(labels)
    old = np.sign(own[ends[:, 0]] - own[ends[:, 1]])
    effect = np.zeros(len(own) * len(others))
    for side, sign in ((0, 1), (1, -1)):
        new = sign * np.sign(others[:, None] - own[ends[:, 1 - side]])
        label, row = np.nonzero(new != old)
        here = ends[row]
        before = _slopes(known, here, old[row], strangers=False)
        after = _slopes(known, here, new[label, row], strangers=True)
        change = ((after - before) * (towards[:, here[:, 0]] - towards[:, here[:, 1]])).sum(axis=0)
        effect += np.bincount(here[:, side] * len(others) + label, weights=change * copies[row], minlength=effect.size)
    return effect.reshape(len(own), len(others))


def _slopes(known: PairExamples, ends: npt.NDArray[np.int64], target: npt.NDArray[np.int64], *, strangers: bool) -> Array:
    """dL/ds_first of these pairs under these targets, 0 where the target is 0: no pair. [C, rows]."""
    table = pd.DataFrame({"first": ends[:, 0], "second": ends[:, 1], "target": np.where(target == 0, 1, target)})
    examples = replace(known, table=table, strangers=np.full(len(table), strangers), quantity="loss")
    return np.asarray(np.where(target == 0, 0.0, examples.derivatives))
