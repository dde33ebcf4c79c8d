"""What the harm rule would do at each of several thresholds, side by side."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from tracin_core.scores.exclusions import PairMode, check_rule, first_of_each
from tracin_core.scores.selection import Selection


def threshold_table(
    view: Selection,
    thresholds: Sequence[float],
    *,
    min_occurrences: int = 3,
    max_exclusions: int | None = 50,
    pair_mode: PairMode = "ranking_pair",
) -> pd.DataFrame:
    """One row per threshold, in their order: threshold, occurrences, candidates, listed.

    occurrences: scores strictly below the threshold, over distinct training examples (samples in mode `sample`) and distinct tests.
    candidates: examples (samples in mode `sample`) with at least `min_occurrences` of them. listed: entries of the list, after the cap;
    in mode `full_pair` samples of candidates.

    Raises:
        ExclusionError: the rule or a threshold cannot be applied.
        ViewError: as `Selection.exclusions`.
    """
    check_rule(0.0, min_occurrences, max_exclusions, pair_mode)
    counts = view.sweep(min_occurrences, pair_mode).counts(thresholds)
    by_sample = pair_mode == "sample" or view.train.members.shape[1] == 1
    listed = counts["pairs"] if pair_mode == "ranking_pair" and not by_sample else counts["samples"]
    return pd.DataFrame(
        {
            "threshold": counts["threshold"],
            "occurrences": occurrences_below(view, counts["threshold"].tolist(), by_sample=by_sample),
            "candidates": counts["samples" if by_sample else "pairs"],
            "listed": listed if max_exclusions is None else np.minimum(listed, max_exclusions),
        }
    )


def occurrences_below(view: Selection, thresholds: Sequence[float], *, by_sample: bool) -> list[int]:
    """How many scores lie strictly below each threshold, read a block of tests at a time."""
    tests = first_of_each(view.test_pairs)
    of_pairs = not by_sample or view.train.members.shape[1] == 1
    blocks = view.blocks() if of_pairs else [(slice(0, len(tests)), view.sample_influence())]
    rows = first_of_each(view.train_pairs) if of_pairs else slice(None)
    total = np.zeros(len(thresholds), dtype=np.int64)
    for place, scores in blocks:
        counted = scores[rows][:, tests[place]]
        total += [int((counted < threshold).sum()) for threshold in thresholds]
    return [int(count) for count in total]
