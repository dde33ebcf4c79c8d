"""Two scores of the same examples, matched, ranked and correlated, against plain loops."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_scores import FEW, FLOAT64, VALUES, VIEW, make_view

from tracin_core.errors import ViewError
from tracin_core.scores import agreement
from tracin_core.scores.losses import PairLoss, ghm_bins


@FEW
@given(values=st.lists(st.tuples(VALUES, VALUES), max_size=9))
def test_the_correlation_is_over_values_that_are_defined(values: list[tuple[float, float]]) -> None:
    one, other = np.array(values, dtype=float).reshape(-1, 2).T
    found = agreement.correlation(one, other)
    known = [(a, b) for a, b in values if not (np.isnan(a) or np.isnan(b))]
    assert (found.n, found.undefined) == (len(known), len(values) - len(known))
    if len({a for a, _ in known}) < 2 or len({b for _, b in known}) < 2:
        assert np.isnan([found.spearman, found.pearson]).all()
        return

    def product_moment(a: np.ndarray, b: np.ndarray) -> float:
        a, b = a - a.mean(), b - b.mean()
        return float(a @ b / np.sqrt((a @ a) * (b @ b)))

    a, b = np.array(known).T
    np.testing.assert_allclose(found.pearson, product_moment(a, b), **FLOAT64)
    ranks = [np.array([np.mean([(other < one) + 0.5 * (other == one) for other in side]) for one in side]) for side in (a, b)]
    np.testing.assert_allclose(found.spearman, product_moment(*ranks), **FLOAT64)


# ---- one view against another


@FEW
@given(
    one=st.dictionaries(st.sampled_from("abcdefgh"), VALUES),
    other=st.dictionaries(st.sampled_from("abcdefgh"), VALUES),
    side=st.sampled_from(["highest", "lowest"]),
)
def test_two_values_are_matched_ranked_and_compared(one: dict[str, float], other: dict[str, float], side: Any) -> None:
    left, right = (pd.Series(side_, index=pd.Index(list(side_), name="id", dtype=object), dtype=float) for side_ in (one, other))
    found = agreement.compare(left, right, side=side, top=(1, 3))
    common = sorted(set(one) & set(other))
    assert found.table["id"].tolist() == common
    assert (found.only_one, found.only_other) == (len(one) - len(common), len(other) - len(common))

    def rank(values: dict[str, float], name: str) -> float:
        known = [values[key] for key in common if not np.isnan(values[key])]
        better = [value > values[name] if side == "highest" else value < values[name] for value in known]
        return np.nan if np.isnan(values[name]) else sum(better) + (1 + sum(value == values[name] for value in known)) / 2

    for row in found.table.itertuples():
        np.testing.assert_equal([row.one, row.other], [one[row.id], other[row.id]])
        np.testing.assert_equal([row.one_rank, row.other_rank], [rank(one, row.id), rank(other, row.id)])
        np.testing.assert_equal(row.rank_change, row.other_rank - row.one_rank)
    for k, overlap in found.overlap.itertuples(index=False):
        tops = [
            [name for _, name in sorted((rank(values, name), name) for name in common if not np.isnan(values[name]))][:k]
            for values in (one, other)
        ]
        np.testing.assert_equal(overlap, np.nan if min(map(len, tops)) < k else len(set(tops[0]) & set(tops[1])) / k)
    np.testing.assert_equal(found.spearman, agreement.correlation(found.table["one"], found.table["other"]).spearman)


@pytest.mark.parametrize("score", ["self_influence", "mean_influence"])
def test_ghm_stands_beside_the_margin_with_its_bins(score: Any) -> None:
    loss = PairLoss(name="ghm", margin=4.0, ghm_bins=4, ghm_batch=5)
    ghm, margin = make_view(8, loss), make_view(8, PairLoss(margin=4.0))
    found = agreement.ghm_and_margin(ghm, margin, score=score, checkpoint=1, top=(3,))
    table = found.table.set_index("id").loc[ghm.train_pairs["id"]]
    for name, view in (("ghm", ghm), ("margin", margin)):
        values = view.self_influence() if score == "self_influence" else view.mean_influence()
        np.testing.assert_allclose(table[name], values, **FLOAT64)
    outputs = ghm.train.outputs[1]
    expected = [
        int(ghm_bins(loss, outputs[[pair.first]], outputs[[pair.second]], np.array([pair.target]))[0])
        for pair in ghm.train_pairs.itertuples()
    ]
    assert table["ghm_bin"].tolist() == expected
    assert len(set(expected)) > 1
    np.testing.assert_allclose(table["ghm_weight"], ghm.train.weights[1], **FLOAT64)
    assert table.groupby("ghm_bin")["ghm_weight"].nunique().max() == 1
    for one, other in ((margin, ghm), (ghm, ghm), (margin, margin)):
        with pytest.raises(ViewError, match="One view of a GHM loss and one of another pair loss"):
            agreement.ghm_and_margin(one, other)


# ---- what is refused


TWICE = pd.Series([1.0, 2.0], index=pd.Index(["a", "a"], name="id"))


@pytest.mark.parametrize(
    ("ask", "told"),
    [
        (lambda: agreement.correlation([1.0, 2.0], [1.0]), "One value is needed for each of 2 examples"),
        (lambda: agreement.compare(TWICE, TWICE), "not told apart by a named index"),
        (lambda: agreement.compare(TWICE[:1], TWICE[:1], top=[0]), "The top 0 holds nothing"),
        (lambda: agreement.compare(TWICE[:1], TWICE[:1], side="top"), "no side 'top'; choose from highest, lowest"),
        (lambda: agreement.ghm_and_margin(VIEW, VIEW, score="loss"), "no score 'loss'; choose from"),
        (lambda: agreement.ghm_and_margin(make_view(8, PairLoss("ghm")), VIEW, checkpoint=3), "has 3 checkpoints, but place 3"),
    ],
)
def test_what_has_no_answer_is_refused(ask: Callable[[], Any], told: str) -> None:
    with pytest.raises(ViewError, match=told):
        ask()
