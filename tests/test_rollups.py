"""Roll-ups, gauges and comparisons against plain loops; chance against every possible choice; nothing larger than a block is held."""

import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations, pairwise, permutations, product
from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from tracin_core.data.samples import all_pairs, every_draw, pairs_of
from tracin_core.errors import NotFoundError, ViewError
from tracin_core.scores import rollups
from tracin_core.scores.influence import Kernels
from tracin_core.scores.losses import PairLoss, ghm_bins
from tracin_core.scores.rollups import Ends
from tracin_core.scores.sample_losses import SampleLoss
from tracin_core.scores.view import View

FLOAT64 = {"rtol": 1e-10, "atol": 1e-9}  # sums of a few hundred products of about 10
FEW = settings(deadline=None, max_examples=15)
COLUMNS = ("id", "angle", "sequence", "material")


@dataclass
class Scores:
    """What the roll-ups ask of a view, with a matrix that is simply given."""

    train_samples: pd.DataFrame
    train_pairs: pd.DataFrame
    test_samples: pd.DataFrame
    test_pairs: pd.DataFrame
    matrix: np.ndarray
    dead_tests: np.ndarray
    measure: str = "relative"  # one that is read in blocks
    width: int = 2

    def blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        for start in range(0, len(self.test_pairs), self.width):
            place = slice(start, min(start + self.width, len(self.test_pairs)))
            yield place, self.matrix[:, place]


def sample_table(count: int, seed: int, prefix: str) -> pd.DataFrame:
    """Labels, takes and materials of which some are missing."""
    generator = np.random.default_rng(seed)
    label = generator.integers(0, 3, size=count)
    return pd.DataFrame(
        {
            "id": [f"{prefix}{place}" for place in generator.permutation(count)],
            "label": label,
            "angle": 36 * label,
            "sequence": generator.choice([0.0, 1.0, 2.0, np.nan], size=count),
            "material": generator.choice(np.array(["box", "metal", None], dtype=object), size=count),
        }
    )


def drawn_pairs(samples: pd.DataFrame, seed: int) -> pd.DataFrame:
    """The pairs of these samples, some drawn several times, some not at all."""
    draws = every_draw(len(samples)).assign(multiplicity=np.random.default_rng(seed).integers(0, 4, len(every_draw(len(samples)))))
    return pairs_of(samples, draws[draws["multiplicity"] > 0])


VALUES = st.sampled_from([-3.0, -1.0, -0.0, 0.0, 0.5, 2.0, np.nan])


@st.composite
def given_scores(draw: st.DrawFn, undefined: bool = True) -> Scores:
    """Small tables and a matrix of few different values, some undefined; one live test at least."""
    seed = draw(st.integers(0, 10_000))
    train, test = (sample_table(draw(st.integers(3, 6)), seed + place, name) for place, name in enumerate(("a", "x")))
    test = test.assign(label=range(len(test)), angle=[36 * label for label in range(len(test))])
    train_pairs, test_pairs = drawn_pairs(train, seed), all_pairs(test)
    generator = np.random.default_rng(seed)
    matrix = generator.choice([-3.0, -1.0, 0.0, 0.5, 2.0], size=(len(train_pairs), len(test_pairs)))
    if undefined:
        matrix[generator.random(matrix.shape) < 0.2] = np.nan
    dead = generator.random(len(test_pairs)) < 0.3
    dead[generator.integers(len(dead))] = False
    matrix[:, dead] = 50.0  # what a measure says of a dead test; nobody may read it
    return Scores(train, train_pairs, test, test_pairs, matrix, dead, width=draw(st.integers(1, 7)))


def make_view(seed: int, loss: PairLoss | None = None, calm: bool = False, **change: Any) -> View:
    """A view of whole-number gradients, 3 checkpoints, 7 training and 5 test samples; calm: the test samples are in order, far apart."""
    generator = np.random.default_rng(seed)
    train, test = sample_table(7, seed, "a"), sample_table(5, seed + 1, "x")
    train, test = (side.assign(label=np.arange(len(side)) % 3, angle=36 * (np.arange(len(side)) % 3)) for side in (train, test))
    left, right = (generator.integers(-3, 4, size=(3, 2, count, 4)).astype(float) for count in (7, 5))
    noise = [generator.integers(-12, 13, size=(3, count)) / 4 for count in (7, 5)]
    scale = 2, 90 if calm else 2
    outputs = [
        (size * side["label"].to_numpy() + part).astype(np.float32)
        for size, side, part in zip(scale, (train, test), noise, strict=True)
    ]
    products = (np.einsum("clip,cljp->clij", a, b).astype(np.float32) for a, b in ((left, left), (right, left), (right, right)))
    settings_: dict[str, Any] = {
        "train_pairs": drawn_pairs(train, seed),
        "test_pairs": all_pairs(test),
        "kernels": Kernels(*products, *outputs),
        "loss": loss or PairLoss(margin=4.0),
        "train_samples": train,
        "test_samples": test,
        "checkpoint_weights": np.array([1.0, 0.5, 2.0]),
        "checkpoint_names": ["epoch 1", "epoch 2", "epoch 3"],
    }
    return View.of_pairs(**{**settings_, **change})


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
    np.testing.assert_allclose(rollups.mean_contributions(view).sum(axis=0), view.mean_influence(), **FLOAT64)
    assert rollups.concentration(view).pairs == 6
    found = rollups.recurrence(rollups.most_harmful(view.mean_influence(), 2), train, train)
    assert found.table["pairs"].tolist() == [1] * 6


# ---- self-influence and mean influence


@FEW
@given(values=st.lists(st.tuples(VALUES, VALUES), max_size=9))
def test_the_correlation_is_over_values_that_are_defined(values: list[tuple[float, float]]) -> None:
    one, other = np.array(values, dtype=float).reshape(-1, 2).T
    found = rollups.correlation(one, other)
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


def test_dead_examples_are_in_one_population_and_not_in_the_other() -> None:
    view = make_view(8, PairLoss(margin=1.0))
    live = view.self_influence() != 0
    table = rollups.self_and_mean(view).set_index("population")
    assert table.loc[["all", "live"], "n"].tolist() == [live.size, live.sum()]
    assert 0 < live.sum() < live.size
    for population, rows in (("all", np.arange(live.size)), ("live", np.flatnonzero(live))):
        expected = stats.spearmanr(view.self_influence()[rows], view.mean_influence()[rows]).statistic
        np.testing.assert_allclose(table.loc[population, "spearman"], expected, **FLOAT64)


def test_quadrants_are_named_as_documented() -> None:
    """Size of the mean influence against self-influence; the sign is told beside it; a dead example is in none."""
    expected = [
        (9.0, 6.0, "hard", "helps"),
        (9.0, -6.0, "hard", "harms"),
        (9.0, 0.1, "special_case", "helps"),
        (9.0, -0.1, "special_case", "harms"),
        (1.0, 6.0, "typical", "helps"),
        (3.0, -1.0, "typical", "harms"),
        (1.0, 0.1, "redundant", "helps"),
        (1.0, 0.0, "redundant", "neither"),
        (1.0, 0.1, "redundant", "helps"),
        (0.0, 0.0, "dead", "neither"),
    ]
    own, mean, labels, directions = (np.array(column) for column in zip(*expected, strict=True))
    found = rollups.quadrants(own, mean)
    assert (found.self_cut, found.mean_cut) == (3.0, 0.55)
    assert found.labels.tolist() == labels.tolist()
    assert found.directions.tolist() == directions.tolist()
    table = found.counts.set_index("quadrant")
    assert table.loc["hard"].tolist() == [1, 1, 0]
    assert table.loc["dead"].tolist() == [0, 0, 1]


@FEW
@given(values=st.lists(st.tuples(st.sampled_from([0.0, 1.0, 2.0, 5.0]), st.sampled_from([-3.0, -1.0, 0.0, 0.5, 2.0])), max_size=9))
def test_every_example_is_in_one_quadrant(values: list[tuple[float, float]]) -> None:
    values = [(own, mean if own else 0.0) for own, mean in values]
    found = rollups.quadrants([own for own, _ in values], [mean for _, mean in values])
    live = [(own, abs(mean)) for own, mean in values if own]
    self_cut = np.median([own for own, _ in live]) if live else np.nan
    sizes = [size for _, size in live if size]
    mean_cut = np.median(sizes) if sizes else np.nan
    np.testing.assert_equal([found.self_cut, found.mean_cut], [self_cut, mean_cut])
    names = {(True, True): "hard", (False, True): "typical", (True, False): "special_case", (False, False): "redundant"}
    for (own, mean), label, direction in zip(values, found.labels, found.directions, strict=True):
        assert label == (names[bool(own > self_cut), bool(abs(mean) > mean_cut)] if own else "dead")
        assert direction == {1: "helps", -1: "harms", 0: "neither"}[int(np.sign(mean))]
    counts = found.counts
    assert counts["quadrant"].tolist() == list(rollups.QUADRANTS)
    assert counts[["helps", "harms", "neither"]].to_numpy().sum() == len(values)


# ---- recurrence


SQUARE = pd.DataFrame({"id": list("abcde"), "label": range(5), "angle": [0, 36, 72, 108, 144], "sequence": [0, 0, 0, 1, 1]})


def slow_counts(pairs: pd.DataFrame, samples: pd.DataFrame, chosen: Any, by: str) -> dict[Any, int]:
    found = dict.fromkeys(samples[by], 0)
    for row in chosen:
        for group in {samples[by].iloc[pairs[end].iloc[row]] for end in ("first", "second")}:
            found[group] += 1
    return found


@pytest.mark.parametrize("by", ["id", "sequence"])
@pytest.mark.parametrize("kept", [range(10), [0, 1, 2, 3, 4, 5, 9]])  # in the second, samples have from 2 to 4 pairs
@pytest.mark.parametrize("chosen", [(0, 1, 2), (0, 4, 5), (4, 6)])
def test_chance_is_that_of_every_choice_of_as_many_pairs(by: str, kept: Any, chosen: tuple[int, ...]) -> None:
    """All choices of k pairs: p per group exactly; the p of the largest excess within what 9,999 draws can tell."""
    pairs = all_pairs(SQUARE).iloc[list(kept)].reset_index(drop=True)
    mask = np.isin(np.arange(len(pairs)), chosen)
    found = rollups.recurrence(mask, pairs, SQUARE, by=by)
    table = found.table.set_index("group")
    every = [slow_counts(pairs, SQUARE, choice, by) for choice in combinations(range(len(pairs)), len(chosen))]
    seen, held = slow_counts(pairs, SQUARE, chosen, by), slow_counts(pairs, SQUARE, range(len(pairs)), by)
    drawn = pd.DataFrame(every)
    excess = (drawn - drawn.mean()) / drawn.std(ddof=0)
    largest = excess.max(axis=1).to_numpy()
    for group in table.index:
        assert (table["chosen"][group], table["pairs"][group]) == (seen[group], held[group])
        np.testing.assert_allclose(table["expected"][group], drawn[group].mean(), **FLOAT64)
        np.testing.assert_allclose(table["p"][group], (drawn[group] >= seen[group]).mean(), **FLOAT64)
        mine = (seen[group] - drawn[group].mean()) / drawn[group].std(ddof=0)
        assert abs(table["p_familywise"][group] - (largest >= mine - 1e-9).mean()) < 0.02  # 4 standard errors of 9,999 draws
    np.testing.assert_allclose(table["q"], stats.false_discovery_control(table["p"]), **FLOAT64)
    assert found.p_largest == table["p_familywise"].min()
    assert (found.chosen, found.pairs) == (len(chosen), len(pairs))
    assert found.table["p"].is_monotonic_increasing


def test_a_pair_counts_once_however_it_was_drawn() -> None:
    """Mirrored pairs, of an oriented table, are one pair: chosen if either is."""
    pairs = all_pairs(SQUARE)
    mask = np.arange(len(pairs)) < 4
    mirrored = pairs.rename(columns={"first": "second", "second": "first", "id1": "id2", "id2": "id1"})[list(pairs.columns)]
    both = pd.concat([pairs.assign(multiplicity=3), mirrored], ignore_index=True)
    once = rollups.recurrence(mask, pairs, SQUARE)
    for chosen in (np.r_[mask, mask], np.r_[mask, ~mask & False], np.r_[mask & False, mask]):
        twice = rollups.recurrence(chosen, both, SQUARE)
        assert (twice.chosen, twice.pairs) == (4, 10)
        pd.testing.assert_frame_equal(twice.table.drop(columns="p_familywise"), once.table.drop(columns="p_familywise"))


def test_a_planted_sample_stands_out_and_a_random_choice_does_not() -> None:
    samples = sample_table(40, 0, "a").assign(label=np.arange(40) % 5)
    pairs = all_pairs(samples)
    generator = np.random.default_rng(0)
    values = generator.normal(size=len(pairs)) - 4 * ((pairs["first"] == 7) | (pairs["second"] == 7))
    found = rollups.recurrence(rollups.most_harmful(values, 25), pairs, samples)
    assert found.table["group"].iloc[0] == samples["id"].iloc[7]
    assert found.p_largest == 1 / 10_000
    assert (found.table["q"].iloc[1:] > 0.05).all()
    largest = [
        rollups.recurrence(generator.permutation(len(pairs)) < 25, pairs, samples, permutations=99, seed=seed).p_largest
        for seed in range(60)
    ]
    for level in (0.05, 0.2, 0.5):  # counts are whole numbers, so p is at most uniform
        assert np.sum(np.array(largest) <= level) <= stats.binom.ppf(0.999, len(largest), level)
    assert min(largest) < 0.5


def test_what_touches_all_pairs_cannot_stand_out() -> None:
    samples = SQUARE.assign(material="box")
    found = rollups.recurrence(np.arange(10) < 3, all_pairs(samples), samples, by="material")
    assert found.table[["pairs", "chosen", "p", "q", "p_familywise"]].to_numpy().tolist() == [[10, 3, 1, 1, 1]]


@FEW
@given(values=st.lists(VALUES, min_size=1, max_size=9), k=st.integers(1, 9))
def test_the_most_harmful_are_below_zero_and_the_lowest(values: list[float], k: int) -> None:
    negative = sorted((value, place) for place, value in enumerate(values) if value < 0)
    assert np.flatnonzero(rollups.most_harmful(values, k)).tolist() == sorted(place for _, place in negative[:k])


# ---- drift


def test_drift_is_tested_by_every_order_of_the_samples() -> None:
    """5 samples, 120 orders: the exact two-sided p of scipy's convention, twice the smaller tail."""
    pairs = all_pairs(SQUARE)
    samples = SQUARE.assign(sequence=[3, 1, 4, 0, 2])
    values = np.random.default_rng(1).normal(size=len(pairs))
    found = rollups.drift(values, pairs, samples)
    mean = np.array([values[((pairs["first"] == x) | (pairs["second"] == x)).to_numpy()].mean() for x in range(5)])
    every = np.array([stats.spearmanr(order, mean).statistic for order in permutations(samples["sequence"])])
    mine = stats.spearmanr(samples["sequence"], mean).statistic
    np.testing.assert_allclose(found.spearman, mine, **FLOAT64)
    np.testing.assert_allclose(found.p, min(1.0, 2 * min((every >= mine - 1e-9).mean(), (every <= mine + 1e-9).mean())), **FLOAT64)
    np.testing.assert_allclose(found.table["mean"], mean[np.argsort(samples["sequence"])], **FLOAT64)
    assert found.samples == 5


def test_a_planted_drift_is_found_and_copies_weigh() -> None:
    samples = sample_table(30, 2, "a").assign(label=np.arange(30) % 5, sequence=np.arange(30) // 5)
    pairs = drawn_pairs(samples, 2)
    take = samples["sequence"].to_numpy()
    noise = np.random.default_rng(0).normal(size=len(pairs))
    found = rollups.drift(noise + take[pairs["first"]] + take[pairs["second"]], pairs, samples)
    assert found.spearman > 0.7
    assert found.p == pytest.approx(2 / 10_000)
    assert found.table["group"].tolist() == [0, 1, 2, 3, 4, 5]
    assert found.table["samples"].tolist() == [5] * 6
    mean = [
        np.average(noise[own], weights=pairs["multiplicity"][own])
        for own in (((pairs["first"] == x) | (pairs["second"] == x)).to_numpy() for x in range(30))
    ]
    still = rollups.drift(noise, pairs, samples)
    for group, row in still.table.iterrows():
        np.testing.assert_allclose(row["mean"], np.mean(np.array(mean)[take == group]), **FLOAT64)
        expected = stats.mannwhitneyu(np.array(mean)[take == group], np.array(mean)[take != group]).pvalue
        np.testing.assert_allclose(row["p"], expected, **FLOAT64)
    np.testing.assert_allclose(still.table["q"], stats.false_discovery_control(still.table["p"]), **FLOAT64)


def test_samples_without_a_number_or_a_value_are_counted() -> None:
    samples = SQUARE.assign(sequence=[0.0, 1.0, 2.0, 3.0, np.nan])
    pairs = all_pairs(samples)
    values = np.where((pairs["first"] == 0) | (pairs["second"] == 0), np.nan, np.arange(10.0))
    found = rollups.drift(values, pairs, samples)
    assert (found.samples, found.left_out) == (3, 2)
    same = rollups.drift(np.ones(10), pairs, samples)
    assert np.isnan([same.spearman, same.p]).all()
    assert same.table["p"].isna().all()
    assert same.table["mean"].tolist() == [1.0] * 4


# ---- concentration


def slow_fewest(sizes: np.ndarray, share: float) -> int:
    """The smallest set by trying every number of the largest."""
    largest = sorted(sizes, reverse=True)
    return next(number for number in range(len(largest) + 1) if sum(largest[:number]) >= share * sum(largest))


@FEW
@given(scores=given_scores(), share=st.sampled_from([0.5, 0.8, 1.0]), top=st.sampled_from([0.1, 0.34, 1.0]))
def test_the_fewest_pairs_that_carry_a_share(scores: Scores, share: float, top: float) -> None:
    assume(len(scores.train_pairs) > 0)
    found = rollups.concentration(scores, share=share, top=top)
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
        table = rollups.checkpoints_of(view, train, test)
        np.testing.assert_allclose(table["cumulative"].iloc[-1], view.influence(test)[row], **FLOAT64)
        assert (table["contribution"][~(table["train_live"] & table["test_live"])] == 0).all()
        assert table["share"].isna().all() if (table["contribution"] == 0).all() else np.isclose(table["share"].sum(), 1)
    assert table["checkpoint"].tolist() == ["epoch 1", "epoch 2", "epoch 3"]
    assert table["weight"].tolist() == [1.0, 0.5, 2.0]
    with pytest.raises(NotFoundError, match="no training pair 'nobody'"):
        rollups.checkpoints_of(view, "nobody", test)


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 10_000))
def test_the_checkpoints_parts_of_the_mean_add_up(seed: int) -> None:
    """Over the tests that are live in the whole view, whichever checkpoint they live at."""
    view = make_view(seed, PairLoss(margin=1.0))
    assume(not view.dead_tests.all())
    parts = rollups.mean_contributions(view)
    np.testing.assert_allclose(parts.sum(axis=0), view.mean_influence(), **FLOAT64)
    live = ~view.dead_tests
    for c, weight in enumerate(view.checkpoint_weights):
        alone = make_view(seed, PairLoss(margin=1.0), checkpoint_weights=weight * (np.arange(3) == c))
        np.testing.assert_allclose(parts[c], alone.influence()[:, live].mean(axis=1), **FLOAT64)


@FEW
@given(parts=st.lists(st.lists(st.sampled_from([-2.0, -1.0, 0.0, 0.5, 3.0]), min_size=4, max_size=4), min_size=1, max_size=4))
def test_checkpoints_agree_by_rank(parts: list[list[float]]) -> None:
    names = [f"epoch {place}" for place in range(len(parts))]
    agreement = rollups.checkpoint_agreement(parts, names)
    for (one, a), (two, b) in product(zip(names, parts, strict=True), repeat=2):
        expected = np.nan if len(set(a)) == 1 or len(set(b)) == 1 else stats.spearmanr(a, b).statistic
        np.testing.assert_allclose(agreement.loc[one, two], expected, **FLOAT64)
    table = rollups.checkpoint_table(parts, names)
    whole = np.abs(parts).sum()
    for place, own in enumerate(parts):
        row = table.iloc[place]
        rest = np.delete(parts, place, axis=0).sum(axis=0)
        constant = len(parts) == 1 or np.ptp(own) == 0 or np.ptp(rest) == 0
        np.testing.assert_allclose(row["agreement"], np.nan if constant else stats.spearmanr(own, rest).statistic, **FLOAT64)
        np.testing.assert_allclose(row["absolute_share"], np.abs(own).sum() / whole if whole else np.nan, **FLOAT64)
        assert (row["sum"], row["zero_share"]) == (sum(own), own.count(0.0) / 4)


# ---- one view against another


@FEW
@given(
    one=st.dictionaries(st.sampled_from("abcdefgh"), VALUES),
    other=st.dictionaries(st.sampled_from("abcdefgh"), VALUES),
    side=st.sampled_from(["highest", "lowest"]),
)
def test_two_values_are_matched_ranked_and_compared(one: dict[str, float], other: dict[str, float], side: Any) -> None:
    left, right = (pd.Series(side_, index=pd.Index(list(side_), name="id", dtype=object), dtype=float) for side_ in (one, other))
    found = rollups.compare(left, right, side=side, top=(1, 3))
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
    np.testing.assert_equal(found.spearman, rollups.correlation(found.table["one"], found.table["other"]).spearman)


@pytest.mark.parametrize("score", ["self_influence", "mean_influence"])
def test_ghm_stands_beside_the_margin_with_its_bins(score: Any) -> None:
    loss = PairLoss(name="ghm", margin=4.0, ghm_bins=4, ghm_batch=5)
    ghm, margin = make_view(8, loss), make_view(8, PairLoss(margin=4.0))
    found = rollups.ghm_and_margin(ghm, margin, score=score, checkpoint=1, top=(3,))
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
            rollups.ghm_and_margin(one, other)


# ---- what is refused, and what is empty


VIEW = make_view(8)
ONES = np.ones(len(VIEW.train_pairs))
TWICE = pd.Series([1.0, 2.0], index=pd.Index(["a", "a"], name="id"))


@pytest.mark.parametrize(
    ("ask", "told"),
    [
        (lambda: rollups.roll_up(ONES, VIEW.train_pairs, VIEW.train_samples, by="weather"), "no column 'weather'; choose from id,"),
        (lambda: rollups.roll_up(ONES, VIEW.train_pairs, VIEW.train_samples, by="id", ends="own2"), "no choice of ends 'own2'"),
        (lambda: rollups.roll_up(ONES[1:], VIEW.train_pairs, VIEW.train_samples, by="id"), "One value is needed for each of"),
        (lambda: rollups.roll_up(ONES * np.inf, VIEW.train_pairs, VIEW.train_samples, by="id"), "The value in row 0 is infinite"),
        (lambda: rollups.roll_up(ONES, VIEW.train_pairs, VIEW.train_samples[:2], by="id"), "A pair points outside the 2 samples"),
        (lambda: rollups.influence_grid(make_view(0, calm=True)), "All 8 tests are dead"),
        (lambda: rollups.mean_contributions(make_view(0, calm=True)), "All 8 tests are dead"),
        (lambda: rollups.concentration(make_view(0, calm=True)), "All 8 tests are dead"),
        (lambda: rollups.self_and_mean(make_view(0, calm=True)), "All 8 test pairs are dead"),
        (lambda: rollups.concentration(VIEW, share=0.0), "share is 0.0; choose a number above 0, up to 1"),
        (lambda: rollups.concentration(VIEW, top=1.1), "top is 1.1"),
        (lambda: rollups.concentration(make_view(8, measure="rank")), "Percentiles carry no influence"),
        (lambda: rollups.correlation([1.0, 2.0], [1.0]), "One value is needed for each of 2 examples"),
        (lambda: rollups.quadrants([1.0, -2.0], [1.0, 1.0]), "A self-influence is -2; take the quadrants"),
        (lambda: rollups.quadrants([1.0, np.nan], [1.0, 1.0]), "is undefined; take the quadrants"),
        (lambda: rollups.most_harmful([1.0], 0), "The 0 most harmful pairs are none"),
        (lambda: rollups.recurrence(ONES, VIEW.train_pairs, VIEW.train_samples), "One boolean is needed for each of"),
        (lambda: rollups.recurrence(ONES > 0, VIEW.train_pairs, VIEW.train_samples, permutations=0), "choose at least 1"),
        (lambda: rollups.recurrence(ONES > 0, VIEW.train_pairs, VIEW.train_samples, permutations=10**9), "cannot be drawn"),
        (lambda: rollups.drift(ONES, VIEW.train_pairs, VIEW.train_samples, by="material"), "no drift can follow"),
        (lambda: rollups.drift(ONES, VIEW.train_pairs, VIEW.train_samples, by="take"), "no column 'take'"),
        (lambda: rollups.drift(ONES, VIEW.train_pairs, VIEW.train_samples, permutations=0), "0 permutations test nothing"),
        (lambda: rollups.checkpoint_table([[1.0]], ["a", "b"]), "for 2 checkpoints"),
        (lambda: rollups.checkpoint_agreement([[1.0, np.nan]], ["a"]), "Checkpoint 'a' adds nan to example 1"),
        (lambda: rollups.compare(TWICE, TWICE), "not told apart by a named index"),
        (lambda: rollups.compare(TWICE[:1], TWICE[:1], top=[0]), "The top 0 holds nothing"),
        (lambda: rollups.compare(TWICE[:1], TWICE[:1], side="top"), "no side 'top'; choose from highest, lowest"),
        (lambda: rollups.ghm_and_margin(VIEW, VIEW, score="loss"), "no score 'loss'; choose from"),
        (lambda: rollups.ghm_and_margin(make_view(8, PairLoss("ghm")), VIEW, checkpoint=3), "has 3 checkpoints, but place 3"),
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
    assert rollups.self_and_mean(view)["n"].tolist() == [0, 0]
    assert rollups.quadrants(nothing, nothing).counts[["helps", "harms", "neither"]].to_numpy().sum() == 0
    found = rollups.recurrence(nothing > 0, none, samples)
    assert (found.p_largest, found.table["p"].tolist()) == (1.0, [1.0] * len(samples))
    assert rollups.recurrence(ONES < 0, VIEW.train_pairs, samples).table["p"].tolist() == [1.0] * len(samples)
    assert rollups.recurrence(nothing > 0, none, samples[:0]).table.empty
    assert rollups.drift(nothing, none, samples).table.empty
    parts = rollups.mean_contributions(view)
    assert parts.shape == (3, 0)
    assert rollups.checkpoint_table(parts, VIEW.checkpoint_names)["absolute_share"].isna().all()
    assert rollups.checkpoint_agreement(parts, VIEW.checkpoint_names).isna().to_numpy().all()
    assert not rollups.most_harmful(nothing, 3).size
    with pytest.raises(ViewError, match="There is no training pair"):
        rollups.concentration(view)


# ---- streaming


class Lazy(Scores):
    """Blocks that are made when they are asked for, as a view makes them."""

    def blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        for start, stop in pairwise(range(0, len(self.test_pairs) + 1, self.width)):
            yield slice(start, stop), np.random.default_rng(start).normal(size=(len(self.train_pairs), self.width))


@pytest.mark.parametrize("read", [rollups.influence_grid, rollups.concentration])
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
