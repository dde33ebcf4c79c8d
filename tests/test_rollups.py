"""Sums and means of groups, and the grid of influences, against plain loops; nothing larger than a block is held."""

import tracemalloc
from collections.abc import Callable
from itertools import product
from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from made_scores import COLUMNS, FEW, FLOAT64, ONES, VIEW, Lazy, Scores, given_scores, make_view

from tracin_core.data.samples import all_pairs
from tracin_core.errors import ViewError
from tracin_core.scores import patterns, rollups, shares
from tracin_core.scores.influence import Kernels
from tracin_core.scores.losses import PairLoss
from tracin_core.scores.rollups import Ends
from tracin_core.scores.sample_losses import SampleLoss
from tracin_core.scores.view import View

# ---- sums and means


def slow_parts(pairs: pd.DataFrame, samples: pd.DataFrame, by: str, ends: str) -> list[dict[Any, float]]:
    """Per pair: group -> how much of the pair belongs to it. A missing value is the group None."""
    column = [None if pd.isna(value) else value for value in samples[by]]
    found = []
    for pair in pairs.itertuples():
        one, two = column[pair.first], column[pair.second]
        parts: dict[Any, float] = {}
        if ends == "unordered":
            parts[frozenset([one, two])] = 1.0
        elif ends in ("first", "second"):
            parts[one if ends == "first" else two] = 1.0
        else:
            for group in [one, two] if ends != "touching" else {one, two}:
                parts[group] = parts.get(group, 0.0) + (0.5 if ends == "half" else 1.0)
        found.append(parts)
    return found


def key_of(row: Any, prefix: str = "") -> Any:
    """The group of a row of a result, as `slow_parts` names it."""
    names = [f"{prefix}low", f"{prefix}high"] if f"{prefix}low" in row else [f"{prefix}group"]
    values = [None if pd.isna(row[name]) else row[name] for name in names]
    return frozenset(values) if len(values) == 2 else values[0]


@FEW
@given(scores=given_scores(), by=st.sampled_from(COLUMNS), ends=st.sampled_from([e for e in get_args(Ends) if e != "own"]))
def test_a_roll_up_adds_each_pairs_parts(scores: Scores, by: str, ends: Ends) -> None:
    """Sums, means and counts by any column, for every share that a pair can have in the groups of its ends."""
    values, pairs = scores.matrix[:, 0], scores.train_pairs
    table = rollups.roll_up(values, pairs, scores.train_samples, by=by, ends=ends)
    parts = slow_parts(pairs, scores.train_samples, by, ends)
    total = {"unordered": "sum"}.get(ends, f"sum_{ends}")
    for row in table.to_dict("records"):
        group = key_of(row)
        held = [(p[group] * m, value) for p, m, value in zip(parts, pairs["multiplicity"], values, strict=True) if group in p]
        known = [(part, value) for part, value in held if not np.isnan(value)]
        assert (row["n"], row["undefined"]) == (len(known), len(held) - len(known))
        np.testing.assert_allclose(row["weight"], sum(part for part, _ in known), **FLOAT64)
        np.testing.assert_allclose(row[total], sum(part * value for part, value in known), **FLOAT64)
        np.testing.assert_allclose(row["mean"], row[total] / row["weight"] if known else np.nan, **FLOAT64)
    everyone = {group for part in parts for group in part}
    assert everyone <= {key_of(row) for row in table.to_dict("records")}
    if ends != "unordered":  # a group without a pair has its row
        assert len(table) == len(pd.unique(scores.train_samples[by]))


@FEW
@given(scores=given_scores(), by=st.sampled_from(COLUMNS))
def test_halves_add_up_and_whole_ends_add_up_to_twice(scores: Scores, by: str) -> None:
    values = np.nan_to_num(scores.matrix[:, 0])
    once = float(values @ scores.train_pairs["multiplicity"])
    asked = {
        ends: rollups.roll_up(values, scores.train_pairs, scores.train_samples, by=by, ends=ends) for ends in get_args(Ends)[:6]
    }
    sums = {ends: float(table["sum" if ends == "unordered" else f"sum_{ends}"].sum()) for ends, table in asked.items()}
    for ends in ("half", "first", "second", "unordered"):
        np.testing.assert_allclose(sums[ends], once, **FLOAT64)
    np.testing.assert_allclose(sums["both"], 2 * once, **FLOAT64)


def test_whole_ends_of_a_sample_are_what_its_removal_takes_away() -> None:
    """As `View.sample_influence` has it, drawn copies counted."""
    view = make_view(3)
    test = view.test_pairs["id"].iloc[2]
    table = rollups.roll_up(view.influence(test), view.train_pairs, view.train_samples, by="id", ends="both").set_index("group")
    np.testing.assert_allclose(
        table["sum_both"].loc[view.train_samples["id"]], view.sample_influence()[:, view.test_row(test)], **FLOAT64
    )
    assert (view.train_pairs["multiplicity"] > 1).any()


def test_a_pairs_own_column_makes_groups_too() -> None:
    view = make_view(3)
    values = view.self_influence()
    table = rollups.roll_up(values, view.train_pairs, view.train_samples, by="gap", ends="own")
    assert list(table["group"]) == [36, 72]
    for gap, total in zip(table["group"], table["sum"], strict=True):
        chosen = (view.train_pairs["gap"] == gap).to_numpy()
        np.testing.assert_allclose(total, values[chosen] @ view.train_pairs["multiplicity"][chosen], **FLOAT64)


def test_the_mean_of_an_angle_pair_is_that_of_the_view() -> None:
    pairs = make_view(5).train_pairs.assign(multiplicity=1)
    view = make_view(5, train_pairs=pairs)
    values = view.self_influence()
    mine, theirs = rollups.roll_up(values, pairs, view.train_samples, by="angle", ends="unordered"), view.angle_grid(values)
    pd.testing.assert_frame_equal(mine[["low", "high", "n", "mean"]], theirs[["low", "high", "n", "mean"]])


def test_samples_are_examples_too() -> None:
    """A table without ends is of samples: each is a group's one end, and its halves are the whole."""
    samples = pd.DataFrame({"id": ["a", "b", "c"], "label": [1, 0, 1]})
    for ends in ("half", "both", "touching", "first", "second"):
        table = rollups.roll_up([1.0, 2.0, 4.0], samples, samples, by="label", ends=ends)
        assert table[f"sum_{ends}"].tolist() == [2.0, 5.0]
    with pytest.raises(ViewError, match="2 examples without the columns first and second are samples, but the table has 3"):
        rollups.roll_up([1.0, 2.0], samples[:2], samples, by="label")


# ---- the grid of influences


@FEW
@given(scores=given_scores(), by=st.sampled_from(COLUMNS), ends=st.sampled_from(["unordered", "half", "both", "touching"]))
def test_the_grid_adds_the_influences_of_two_groups(scores: Scores, by: str, ends: Ends) -> None:
    """Over live tests, each training copy counted, dead tests and undefined influences told."""
    grid = rollups.influence_grid(scores, by=by, ends=ends)
    train = slow_parts(scores.train_pairs, scores.train_samples, by, ends)
    test = slow_parts(scores.test_pairs, scores.test_samples, by, ends)
    seen = set()
    for row in grid.to_dict("records"):
        left, right = key_of(row, "train_"), key_of(row, "test_")
        seen.add((left, right))
        rows, columns = (
            [place for place, parts in enumerate(side) if group in parts] for side, group in ((train, left), (test, right))
        )
        live = [column for column in columns if not scores.dead_tests[column]]
        assert (row["live_tests"], row["dead_tests"]) == (len(live), len(columns) - len(live))
        cells = [
            (train[e][left] * scores.train_pairs["multiplicity"].iloc[e] * test[f][right], scores.matrix[e, f])
            for e, f in product(rows, live)
        ]
        known = [(part, value) for part, value in cells if not np.isnan(value)]
        assert (row["n"], row["undefined"]) == (len(known), len(cells) - len(known))
        total, weight = sum(part * value for part, value in known), sum(part for part, _ in known)
        np.testing.assert_allclose(row["sum"], total, **FLOAT64)
        np.testing.assert_allclose(row["mean"], total / weight if known else np.nan, **FLOAT64)
    assert seen == {
        (a, b) for a in groups_of(train, scores.train_samples, by, ends) for b in groups_of(test, scores.test_samples, by, ends)
    }


def groups_of(parts: list[dict[Any, float]], samples: pd.DataFrame, by: str, ends: str) -> set[Any]:
    if ends == "unordered":
        return {group for part in parts for group in part}
    return {None if pd.isna(value) else value for value in samples[by]}


@FEW
@given(seed=st.integers(0, 10_000), ends=st.sampled_from(["unordered", "half", "both"]), by=st.sampled_from(COLUMNS))
def test_sums_of_gradients_give_the_sums_of_influences(seed: int, ends: Ends, by: str) -> None:
    """A grid of the dot product, which reads no influence, is that of its influences read in blocks."""
    view = make_view(seed, PairLoss(margin=1.0))
    assume(not view.dead_tests.all())
    read = Scores(view.train_samples, view.train_pairs, view.test_samples, view.test_pairs, view.influence(), view.dead_tests)
    mine, theirs = (rollups.influence_grid(one, by=by, ends=ends) for one in (view, read))
    pd.testing.assert_frame_equal(mine, theirs, rtol=1e-10, atol=1e-9)


def test_two_columns_make_a_grid_of_a_real_view() -> None:
    """Angle difference against the material of the test's first sample; dead tests are in no sum."""
    view = make_view(8, PairLoss(margin=1.0))
    grid = rollups.influence_grid(view, by="gap", ends="own", test_by="material", test_ends="first")
    assert set(grid["train_group"]) == {36, 72}
    live, whole = ~view.dead_tests, view.influence()
    copies = view.train_pairs["multiplicity"].to_numpy()
    assert 0 < live.sum() < live.size
    np.testing.assert_allclose(grid["sum"].sum(), (copies @ whole[:, live]).sum(), **FLOAT64)
    assert grid.groupby("train_group")["dead_tests"].sum().tolist() == [(~live).sum()] * 2


@pytest.mark.parametrize("cotangent", ["label_logit", "outputs"])
def test_a_view_of_classified_samples_is_rolled_up_too(cotangent: Any) -> None:
    """Labels against labels and checkpoint by checkpoint, with one position per sample and with one per output."""
    generator, sides, classes = np.random.default_rng(0), {"a": 6, "x": 4}, 3
    train, test = (
        pd.DataFrame({"id": [f"{side}{n}" for n in range(sides[side])], "label": np.arange(sides[side]) % 3}) for side in "ax"
    )
    positions = [count * (classes if cotangent == "outputs" else 1) for count in sides.values()]
    left, right = (generator.normal(size=(2, 1, count, 5)) for count in positions)
    products = (np.einsum("clip,cljp->clij", a, b).astype(np.float32) for a, b in ((left, left), (right, left), (right, right)))
    outputs = [generator.normal(size=(2, count, classes)).astype(np.float32) for count in sides.values()]
    view = View.of_samples(
        train,
        test,
        Kernels(*products, *outputs),
        loss=SampleLoss("cross_entropy"),
        cotangent=cotangent,
        checkpoint_weights=np.array([0.5, 2.0]),
        checkpoint_names=["epoch 1", "epoch 2"],
    )
    grid = rollups.influence_grid(view, by="label", ends="own")
    for row in grid.itertuples():
        cells = view.influence()[np.ix_(train["label"] == row.train_group, test["label"] == row.test_group)]
        np.testing.assert_allclose([row.n, row.sum, row.mean], [cells.size, cells.sum(), cells.mean()], **FLOAT64)
    assert len(grid) == 9
    np.testing.assert_allclose(shares.mean_contributions(view).sum(axis=0), view.mean_influence(), **FLOAT64)
    assert shares.concentration(view).pairs == 6
    found = patterns.recurrence(patterns.most_harmful(view.mean_influence(), 2), train, train)
    assert found.table["pairs"].tolist() == [1] * 6


@pytest.mark.parametrize(
    ("ask", "told"),
    [
        (lambda: rollups.roll_up(ONES, VIEW.train_pairs, VIEW.train_samples, by="weather"), "no column 'weather'; choose from id,"),
        (lambda: rollups.roll_up(ONES, VIEW.train_pairs, VIEW.train_samples, by="id", ends="own2"), "no choice of ends 'own2'"),
        (lambda: rollups.roll_up(ONES[1:], VIEW.train_pairs, VIEW.train_samples, by="id"), "One value is needed for each of"),
        (lambda: rollups.roll_up(ONES * np.inf, VIEW.train_pairs, VIEW.train_samples, by="id"), "The value in row 0 is infinite"),
        (lambda: rollups.roll_up(ONES, VIEW.train_pairs, VIEW.train_samples[:2], by="id"), "A pair points outside the 2 samples"),
        (lambda: rollups.influence_grid(make_view(0, calm=True)), "All 8 tests are dead"),
    ],
)
def test_what_has_no_answer_is_refused(ask: Callable[[], Any], told: str) -> None:
    with pytest.raises(ViewError, match=told):
        ask()


def test_a_grid_of_all_single_pairs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollups, "CELL_BUDGET", 100)
    with pytest.raises(ViewError, match="The grid would have"):
        rollups.influence_grid(VIEW, by="id", ends="own")


def test_without_a_training_pair_tables_are_empty_and_typed() -> None:
    """The same columns as with pairs; a group of samples without a pair keeps its row."""
    samples = VIEW.train_samples
    none, nothing = VIEW.train_pairs[:0], np.zeros(0)
    view = make_view(8, train_pairs=none)
    for ends, by in (("half", "id"), ("unordered", "angle"), ("own", "gap")):
        empty, full = (
            rollups.roll_up(values, pairs, samples, by=by, ends=ends)
            for values, pairs in ((nothing, none), (ONES, VIEW.train_pairs))
        )
        assert list(empty.columns) == list(full.columns)
        assert (len(empty), empty["n"].sum()) == (len(samples) if ends == "half" else 0, 0)
        grid = rollups.influence_grid(view, by=by, ends=ends)
        assert list(grid.columns) == list(rollups.influence_grid(VIEW, by=by, ends=ends).columns)
        assert grid["mean"].isna().all()
    assert patterns.self_and_mean(view)["n"].tolist() == [0, 0]
    assert patterns.quadrants(nothing, nothing).counts[["helps", "harms", "neither"]].to_numpy().sum() == 0
    found = patterns.recurrence(nothing > 0, none, samples)
    assert (found.p_largest, found.table["p"].tolist()) == (1.0, [1.0] * len(samples))
    assert patterns.recurrence(ONES < 0, VIEW.train_pairs, samples).table["p"].tolist() == [1.0] * len(samples)
    assert patterns.recurrence(nothing > 0, none, samples[:0]).table.empty
    assert patterns.drift(nothing, none, samples).table.empty
    parts = shares.mean_contributions(view)
    assert parts.shape == (3, 0)
    assert shares.checkpoint_table(parts, VIEW.checkpoint_names)["absolute_share"].isna().all()
    assert shares.checkpoint_agreement(parts, VIEW.checkpoint_names).isna().to_numpy().all()
    assert not patterns.most_harmful(nothing, 3).size
    with pytest.raises(ViewError, match="There is no training pair"):
        shares.concentration(view)


@pytest.mark.parametrize("read", [rollups.influence_grid, shares.concentration])
def test_the_matrix_is_never_held(read: Callable[[Any], Any]) -> None:
    """4,750 x 1,128 scores would be 43 MB."""
    samples, tests = (
        pd.DataFrame({"id": np.arange(n).astype(str), "label": np.arange(n), "angle": np.arange(n) % 6}) for n in (98, 48)
    )
    pairs, test_pairs = all_pairs(samples), all_pairs(tests)
    view = Lazy(samples, pairs, tests, test_pairs, np.zeros(0), np.zeros(len(test_pairs), dtype=bool), width=4)
    tracemalloc.start()
    read(view)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < len(pairs) * len(test_pairs) * 8 / 10
