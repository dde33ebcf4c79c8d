"""Pair losses: values and derivatives against torch's autograd, mirrored pairs, and GHM weights against every possible batch."""

from itertools import combinations, product
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tracin_core.errors import ViewError
from tracin_core.recipe import LossName
from tracin_core.scores.losses import GhmTable, PairLoss, ghm_bins, ghm_table, ghm_weights, pair_derivative, pair_loss

FLOAT64 = {"rtol": 1e-12, "atol": 1e-12}  # a few roundings of numbers of about 10
LOSSES = get_args(LossName)
MIRRORED = [name for name in LOSSES if name != "ghm_legacy"]

# Halves, so that pairs exactly on the kink are common and exact in either dtype.
SCORES = st.integers(-40, 40).map(lambda value: value / 2)
PAIRS = st.lists(st.tuples(SCORES, SCORES, st.sampled_from([-1, 1])), min_size=1, max_size=30)
MARGINS = st.sampled_from([0.0, 1.0, 2.5, 10.0])


def columns(pairs: list[tuple[float, float, int]], kind: Any = np.float64) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    first, second, target = zip(*pairs, strict=True)
    return np.array(first, dtype=kind), np.array(second, dtype=kind), np.array(target)


def in_torch(name: str, margin: float, first: torch.Tensor, second: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    if name == "logistic":
        return torch.nn.functional.softplus(margin - target * (first - second), threshold=1000)
    hinge = torch.nn.functional.margin_ranking_loss(first, second, target, margin=margin, reduction="none")
    return hinge**2 if name == "squared_hinge" else hinge


@settings(deadline=None)
@given(pairs=PAIRS, margin=MARGINS, name=st.sampled_from(LOSSES), weight=st.sampled_from([1.0, 0.25, 3.0]))
def test_values_and_derivatives_are_those_of_autograd(pairs: Any, margin: float, name: LossName, weight: float) -> None:
    """In float64, on the kink too; the second score's derivative is the negative of the first's."""
    first, second, target = columns(pairs)
    one, two = (torch.tensor(scores, requires_grad=True) for scores in (first, second))
    expected = weight * in_torch(name, margin, one, two, torch.tensor(target))
    expected.sum().backward()
    loss = PairLoss(name=name, margin=margin)
    np.testing.assert_allclose(pair_loss(loss, first, second, target, weight), expected.detach().numpy(), **FLOAT64)
    derivative = pair_derivative(loss, first, second, target, weight)
    np.testing.assert_allclose(derivative, one.grad.numpy(), **FLOAT64)
    np.testing.assert_allclose(-derivative, two.grad.numpy(), **FLOAT64)


@pytest.mark.parametrize("target", [-1, 1])
@pytest.mark.parametrize(
    ("name", "slope"), [("margin", 1.0), ("ghm", 1.0), ("ghm_legacy", 1.0), ("squared_hinge", 0.0), ("logistic", 0.5)]
)
def test_the_derivative_on_the_kink(name: LossName, slope: float, target: int) -> None:
    """At z = 0 exactly the margin loss has slope 1, as margin_ranking_loss has."""
    first, second = np.array([10.0 * target]), np.array([0.0])
    loss = PairLoss(name=name, margin=10.0)
    assert pair_derivative(loss, first, second, np.array([target])).tolist() == [-target * slope]


@settings(deadline=None)
@given(seed=st.integers(0, 10_000), margin=st.sampled_from([0.1, 1.0, 10.0]))
def test_float32_scores_decide_the_kink_as_float32(seed: int, margin: float) -> None:
    """Gaps within rounding of the margin: the active pairs are torch's, which float64 would not give."""
    generator = np.random.default_rng(seed)
    second = generator.normal(scale=5, size=50).astype(np.float32)
    target = generator.choice([-1, 1], size=50)
    first = (second + target * np.float32(margin)).astype(np.float32)
    one = torch.tensor(first, requires_grad=True)
    in_torch("margin", margin, one, torch.tensor(second), torch.tensor(target)).sum().backward()
    derivative = pair_derivative(PairLoss(margin=margin), first, second, target)
    assert derivative.dtype == np.float64
    np.testing.assert_array_equal(derivative, one.grad.numpy())


def test_float32_and_float64_disagree_near_the_kink() -> None:
    """Why the dtype matters: in float32 this gap is the margin, in float64 it is above it."""
    first, second, target = np.float32([0.1 + 16]), np.float32([16.0]), np.array([1])
    loss = PairLoss(margin=float(first[0] - second[0]) - 1e-9)
    assert pair_derivative(loss, first, second, target).tolist() == [-1.0]
    assert pair_derivative(loss, first.astype(float), second.astype(float), target).tolist() == [0.0]


@settings(deadline=None)
@given(pairs=PAIRS, margin=MARGINS, name=st.sampled_from(MIRRORED))
def test_a_mirrored_pair_is_the_same_constraint(pairs: Any, margin: float, name: LossName) -> None:
    """(b, a, -t) has the value, the bin, the weight and (ends exchanged) the derivative of (a, b, t)."""
    first, second, target = columns(pairs, np.float32)
    loss = PairLoss(name=name, margin=margin, ghm_batch=4)
    np.testing.assert_array_equal(pair_loss(loss, first, second, target), pair_loss(loss, second, first, -target))
    np.testing.assert_array_equal(pair_derivative(loss, first, second, target), -pair_derivative(loss, second, first, -target))
    np.testing.assert_array_equal(ghm_bins(loss, first, second, target), ghm_bins(loss, second, first, -target))


def test_a_mirrored_pair_is_another_for_ghm_legacy() -> None:
    """Its 2t - 1 makes the bin depend on the orientation, so the drawn one is kept; the hinge itself does not."""
    first, second, target = np.float32([1.0]), np.float32([0.0]), np.array([1])
    loss = PairLoss(name="ghm_legacy", margin=1.0)
    assert ghm_bins(loss, first, second, target).tolist() == [5]  # sigmoid(1 - 1 * 1) = .5
    assert ghm_bins(loss, second, first, -target).tolist() == [1]  # sigmoid(1 + 3 * -1) = .12
    assert pair_loss(loss, first, second, target) == pair_loss(loss, second, first, -target)


def test_legacy_leaves_a_density_of_one_uncounted_and_reads_the_last_bin() -> None:
    """In float32 sigmoid is 1 above 17 or so; such pairs raise no count but take the last bin's weight."""
    first, second, target = np.float32([20, 3, 0]), np.float32([0, 0, 0]), np.array([-1, -1, 1])
    legacy, fixed = (PairLoss(name=name, margin=1.0, ghm_batch=3) for name in ("ghm_legacy", "ghm"))
    assert ghm_bins(legacy, first, second, target).tolist() == [-1, 9, 7]
    assert ghm_bins(fixed, first, second, target).tolist() == [9, 9, 7]
    table = ghm_table(legacy, first, second, target)
    assert (table.counts.tolist(), table.total) == ([0, 0, 0, 0, 0, 0, 0, 1, 0, 1], 3)
    np.testing.assert_allclose(ghm_weights(legacy, table, first, second, target), [1.0, 1.0, 1.0])
    both = ghm_table(fixed, first, second, target)
    np.testing.assert_allclose(ghm_weights(fixed, both, first, second, target), [2**-0.75, 2**-0.75, 1.0])


def mean_over_batches(bins: list[int], own: int | None, loss: PairLoss, place: int, counts: bool) -> float:
    """Mean of count(bin)^-alpha over every batch of `ghm_batch` with pair `own` (None: a guest) in it, one batch after the other."""
    others = [pair for pair in range(len(bins)) if pair != own]
    values = []
    for batch in combinations(others, min(loss.ghm_batch, len(bins)) - 1):
        count = sum(1 for pair in batch if bins[pair] == place) + (1 if counts else 0)
        values.append(max(count, 1) ** -loss.ghm_alpha)
    return float(np.mean(values))


@settings(deadline=None, max_examples=60)
@given(
    pairs=st.lists(st.tuples(SCORES, SCORES, st.sampled_from([-1, 1])), min_size=1, max_size=8),
    visitors=st.lists(st.tuples(SCORES, SCORES, st.sampled_from([-1, 1])), min_size=1, max_size=3),
    batch=st.integers(1, 9),
    alpha=st.sampled_from([0.0, 0.5, 0.75, 1.0]),
    margin=st.sampled_from([0.0, 1.0]),
    name=st.sampled_from(["ghm", "ghm_legacy"]),
)
def test_expected_weights_are_the_mean_over_every_batch(
    pairs: Any, visitors: Any, batch: int, alpha: float, margin: float, name: LossName
) -> None:
    """Exact: of the pairs themselves, and of guests that are looked up beside a batch's other members."""
    loss = PairLoss(name=name, margin=margin, ghm_bins=4, ghm_alpha=alpha, ghm_batch=batch)
    population, guests = columns(pairs, np.float32), columns(visitors, np.float32)
    table = ghm_table(loss, *population)
    bins = ghm_bins(loss, *population).tolist()
    for rows, guest in ((population, False), (guests, True)):
        own = ghm_bins(loss, *rows).tolist()
        read = [3 if place < 0 else place for place in own]
        expected = [mean_over_batches(bins, None if guest else row, loss, read[row], own[row] >= 0) for row in range(len(own))]
        np.testing.assert_allclose(ghm_weights(loss, table, *rows, guest=guest), expected, rtol=1e-9)


def batch_weights(first: torch.Tensor, second: torch.Tensor, target: torch.Tensor, loss: PairLoss) -> np.ndarray:
    """The weights of one batch as legacy training code finds them: the bins' edges, then counts, then a lookup."""
    density = torch.sigmoid(loss.margin - (2 * target - 1) * (first - second))
    edges = [(place / loss.ghm_bins, (place + 1) / loss.ghm_bins) for place in range(loss.ghm_bins)]
    counts = torch.tensor([((density >= low) & (density < high)).sum() for low, high in edges]).clamp(min=1)
    read = (density * loss.ghm_bins).long().clamp(max=loss.ghm_bins - 1)
    return counts[read].numpy().astype(float) ** -loss.ghm_alpha


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(1, 8),
    batch=st.integers(1, 8),
    spread=st.sampled_from([0.3, 4.0, 12.0]),  # the widest has many densities that round to 1
    bins=st.sampled_from([1, 4, 10]),
    margin=st.sampled_from([0.0, 1.0, 10.0]),
)
def test_legacy_is_the_mean_of_legacy_code_over_every_batch(
    seed: int, count: int, batch: int, spread: float, bins: int, margin: float
) -> None:
    """The whole path from float32 scores, sharing no line with the table: torch's weights in every batch that a pair is in."""
    generator = np.random.default_rng(seed)
    first, second = (generator.normal(scale=spread, size=count).astype(np.float32) for _ in range(2))
    target = generator.choice([-1, 1], size=count)
    loss = PairLoss(name="ghm_legacy", margin=margin, ghm_bins=bins, ghm_batch=min(batch, count))
    met: list[list[float]] = [[] for _ in range(count)]
    for chosen in combinations(range(count), loss.ghm_batch):
        rows = list(chosen)
        ends = (torch.tensor(column[rows]) for column in (first, second, target))
        for row, weight in zip(rows, batch_weights(*ends, loss), strict=True):
            met[row].append(weight)
    weights = ghm_weights(loss, ghm_table(loss, first, second, target), first, second, target)
    np.testing.assert_allclose(weights, [np.mean(values) for values in met], rtol=1e-9)


def test_expected_weight_of_a_known_case() -> None:
    """28 of 441 pairs, batches of 32, alpha .75: .524 exactly, .588 by the plug-in; drawn batches agree with the former."""
    first, second, target = np.zeros(441, np.float32), np.zeros(441, np.float32), np.ones(441, int)
    first[28:] = 5
    loss = PairLoss(name="ghm", margin=0.0)
    table = ghm_table(loss, first, second, target)
    assert sorted(table.counts[table.counts > 0]) == [28, 413]
    weight = ghm_weights(loss, table, first, second, target)[0]
    assert weight == pytest.approx(0.524, abs=5e-4)
    met = np.random.default_rng(0).hypergeometric(27, 413, 31, size=200_000)
    assert weight == pytest.approx(((1.0 + met) ** -0.75).mean(), abs=4 * 0.25 / 200_000**0.5)


def test_a_guest_of_an_empty_bin_weighs_one() -> None:
    loss = PairLoss(name="ghm", margin=0.0)
    table = GhmTable(np.array([5, 0, 0, 0, 0, 0, 0, 0, 0, 0]), 5)
    assert ghm_weights(loss, table, np.float32([0]), np.float32([0]), np.array([1]), guest=True).tolist() == [1.0]


@pytest.mark.parametrize("name", ["ghm", "ghm_legacy"])
def test_a_guest_of_an_empty_population_weighs_one(name: LossName) -> None:
    """Not 0, which would call every test pair dead."""
    table = GhmTable(np.zeros(10, int), 0)
    for score in (0, 30):  # 30: a density of 1
        first, second, target = np.float32([0]), np.float32([score]), np.array([1])
        assert ghm_weights(PairLoss(name=name), table, first, second, target, guest=True).tolist() == [1.0]


def test_whole_scores_keep_the_margin_whole() -> None:
    """Scores in integers are the same scores in floats: a margin of 2.5 is not cut to 2."""
    first, second, target = np.array([0, 3]), np.array([0, 1]), np.array([1, 1])
    for name in LOSSES:
        loss = PairLoss(name=name, margin=2.5)
        for function in (pair_loss, pair_derivative, ghm_bins):
            np.testing.assert_array_equal(
                function(loss, first, second, target), function(loss, first.astype(float), second.astype(float), target)
            )


@settings(deadline=None)
@given(pairs=PAIRS, data=st.data(), name=st.sampled_from(["ghm", "ghm_legacy"]))
def test_a_multiplicity_counts_like_repeated_pairs(pairs: Any, data: st.DataObject, name: LossName) -> None:
    times = data.draw(st.lists(st.integers(0, 4), min_size=len(pairs), max_size=len(pairs)))
    repeated = [pair for pair, count in zip(pairs, times, strict=True) for _ in range(count)]
    loss = PairLoss(name=name, margin=1.0)
    table = ghm_table(loss, *columns(pairs, np.float32), np.array(times))
    assert table.total == len(repeated)
    if repeated:
        np.testing.assert_array_equal(table.counts, ghm_table(loss, *columns(repeated, np.float32)).counts)


def test_one_bin_or_no_exponent_is_a_plain_margin_loss_in_batches_of_one() -> None:
    """Counts of a batch of one are 1: every weight is 1, for each variant."""
    first, second, target = (np.float32([0, 4, -30]), np.float32([1, 0, 0]), np.array([1, -1, 1]))
    for name, (batch, alpha) in product(("ghm", "ghm_legacy"), ((1, 0.75), (32, 0.0))):
        loss = PairLoss(name=name, margin=1.0, ghm_batch=batch, ghm_alpha=alpha)
        table = ghm_table(loss, first, second, target)
        np.testing.assert_allclose(ghm_weights(loss, table, first, second, target), 1.0)


@pytest.mark.parametrize(
    ("settings_", "told"),
    [
        ({"name": "huber"}, "no loss 'huber'; choose from margin"),
        ({"margin": -1.0}, "margin is -1"),
        ({"margin": float("nan")}, "margin is nan"),
        ({"ghm_bins": 0}, "ghm_bins is 0"),
        ({"ghm_bins": 2.5}, "integer"),
        ({"ghm_alpha": -0.5}, "ghm_alpha is -0.5"),
        ({"ghm_alpha": float("inf")}, "ghm_alpha is inf"),
        ({"ghm_batch": 0}, "ghm_batch is 0"),
    ],
)
def test_settings_without_meaning_are_refused(settings_: dict[str, Any], told: str) -> None:
    with pytest.raises(ViewError, match=told):
        PairLoss(**settings_)


def test_a_loss_describes_what_matters_for_it() -> None:
    assert PairLoss(margin=2.5).describe() == "margin, margin 2.5"
    assert PairLoss(name="ghm").describe() == "ghm, margin 10, 10 bins, alpha 0.75, batch 32"
