"""The pairs and the checkpoints that carry the influence, against plain loops."""

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from made_scores import FEW, FLOAT64, VIEW, Scores, given_scores, make_view
from scipy import stats

from tracin_core.errors import NotFoundError, ViewError
from tracin_core.scores import shares
from tracin_core.scores.losses import PairLoss

# ---- concentration


def slow_fewest(sizes: np.ndarray, share: float) -> int:
    """The smallest set by trying every number of the largest."""
    largest = sorted(sizes, reverse=True)
    return next(number for number in range(len(largest) + 1) if sum(largest[:number]) >= share * sum(largest))


@FEW
@given(scores=given_scores(), share=st.sampled_from([0.5, 0.8, 1.0]), top=st.sampled_from([0.1, 0.34, 1.0]))
def test_the_fewest_pairs_that_carry_a_share(scores: Scores, share: float, top: float) -> None:
    assume(len(scores.train_pairs) > 0)
    found = shares.concentration(scores, share=share, top=top)
    live = np.flatnonzero(~scores.dead_tests)
    sizes = np.abs(np.nan_to_num(scores.matrix[:, live]))
    total, number = sizes.sum(axis=1), int(np.ceil(top * len(sizes)))
    chosen = sorted(range(len(total)), key=lambda row: (-total[row], row))[:number]
    assert found.tests["id"].tolist() == scores.test_pairs["id"].iloc[live].tolist()
    for row, column in zip(found.tests.itertuples(), sizes.T, strict=True):
        assert row.needed == slow_fewest(column, share)
        assert row.needed_share == row.needed / len(sizes)
        whole = column.sum() or np.nan
        np.testing.assert_allclose(row.top_carries, column[chosen].sum() / whole, **FLOAT64)
        np.testing.assert_allclose(row.own_top_carries, np.sort(column)[::-1][:number].sum() / whole, **FLOAT64)
    assert found.tests["undefined"].tolist() == np.isnan(scores.matrix[:, live]).sum(axis=0).tolist()
    assert found.needed == slow_fewest(total, share)
    np.testing.assert_allclose(found.top_carries, total[chosen].sum() / (total.sum() or np.nan), **FLOAT64)
    assert found.tests_carried == np.mean(found.tests["top_carries"] >= 0.5)
    assert (found.pairs, found.dead_tests) == (len(sizes), scores.dead_tests.sum())


# ---- checkpoint by checkpoint


def test_a_cell_is_explained_checkpoint_by_checkpoint() -> None:
    view = make_view(8, PairLoss(margin=0.0))
    for row, column in product(range(len(view.train_pairs)), range(len(view.test_pairs))):
        train, test = view.train_pairs["id"].iloc[row], view.test_pairs["id"].iloc[column]
        table = shares.checkpoints_of(view, train, test)
        np.testing.assert_allclose(table["cumulative"].iloc[-1], view.influence(test)[row], **FLOAT64)
        assert (table["contribution"][~(table["train_live"] & table["test_live"])] == 0).all()
        assert table["share"].isna().all() if (table["contribution"] == 0).all() else np.isclose(table["share"].sum(), 1)
    assert table["checkpoint"].tolist() == ["epoch 1", "epoch 2", "epoch 3"]
    assert table["weight"].tolist() == [1.0, 0.5, 2.0]
    with pytest.raises(NotFoundError, match="no training pair 'nobody'"):
        shares.checkpoints_of(view, "nobody", test)


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 10_000))
def test_the_checkpoints_parts_of_the_mean_add_up(seed: int) -> None:
    """Over the tests that are live in the whole view, whichever checkpoint they live at."""
    view = make_view(seed, PairLoss(margin=1.0))
    assume(not view.dead_tests.all())
    parts = shares.mean_contributions(view)
    np.testing.assert_allclose(parts.sum(axis=0), view.mean_influence(), **FLOAT64)
    live = ~view.dead_tests
    for c, weight in enumerate(view.checkpoint_weights):
        alone = make_view(seed, PairLoss(margin=1.0), checkpoint_weights=weight * (np.arange(3) == c))
        np.testing.assert_allclose(parts[c], alone.influence()[:, live].mean(axis=1), **FLOAT64)


@FEW
@given(parts=st.lists(st.lists(st.sampled_from([-2.0, -1.0, 0.0, 0.5, 3.0]), min_size=4, max_size=4), min_size=1, max_size=4))
def test_checkpoints_agree_by_rank(parts: list[list[float]]) -> None:
    names = [f"epoch {place}" for place in range(len(parts))]
    agreement = shares.checkpoint_agreement(parts, names)
    for (one, a), (two, b) in product(zip(names, parts, strict=True), repeat=2):
        expected = np.nan if len(set(a)) == 1 or len(set(b)) == 1 else stats.spearmanr(a, b).statistic
        np.testing.assert_allclose(agreement.loc[one, two], expected, **FLOAT64)
    table = shares.checkpoint_table(parts, names)
    whole = np.abs(parts).sum()
    for place, own in enumerate(parts):
        row = table.iloc[place]
        rest = np.delete(parts, place, axis=0).sum(axis=0)
        constant = len(parts) == 1 or np.ptp(own) == 0 or np.ptp(rest) == 0
        np.testing.assert_allclose(row["agreement"], np.nan if constant else stats.spearmanr(own, rest).statistic, **FLOAT64)
        np.testing.assert_allclose(row["absolute_share"], np.abs(own).sum() / whole if whole else np.nan, **FLOAT64)
        assert (row["sum"], row["zero_share"]) == (sum(own), own.count(0.0) / 4)


# ---- what is refused


@pytest.mark.parametrize(
    ("ask", "told"),
    [
        (lambda: shares.mean_contributions(make_view(0, calm=True)), "All 8 tests are dead"),
        (lambda: shares.concentration(make_view(0, calm=True)), "All 8 tests are dead"),
        (lambda: shares.concentration(VIEW, share=0.0), "share is 0.0; choose a number above 0, up to 1"),
        (lambda: shares.concentration(VIEW, top=1.1), "top is 1.1"),
        (lambda: shares.concentration(make_view(8, measure="rank")), "Percentiles carry no influence"),
        (lambda: shares.checkpoint_table([[1.0]], ["a", "b"]), "for 2 checkpoints"),
        (lambda: shares.checkpoint_agreement([[1.0, np.nan]], ["a"]), "Checkpoint 'a' adds nan to example 1"),
    ],
)
def test_what_has_no_answer_is_refused(ask: Callable[[], Any], told: str) -> None:
    with pytest.raises(ViewError, match=told):
        ask()
