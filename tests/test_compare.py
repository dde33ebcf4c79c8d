"""Two sets of scores side by side: agreement by order alone, what two runs differ in, and the page that shows both."""

from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracin_core.errors import ViewError
from tracin_core.scores.agreement import jaccard, overlap_curve

# ---- agreement ------------------------------------------------------------------------------------------------------------------


def orders(values: list[float], sign: int) -> list[tuple[int, ...]]:
    """Every order of the places that has the best first."""
    places = permutations(range(len(values)))
    return [order for order in places if all(sign * values[a] >= sign * values[b] for a, b in pairwise(order))]


@given(data=st.data(), count=st.integers(1, 5), side=st.sampled_from(["highest", "lowest"]))
def test_shared_is_the_mean_over_all_ways_to_break_ties(data: st.DataObject, count: int, side: str) -> None:
    values = st.lists(st.integers(-1, 2).map(float), min_size=count, max_size=count)
    one, other = data.draw(values), data.draw(values)
    sign = 1 if side == "highest" else -1
    ways = [(a, b) for a in orders(one, sign) for b in orders(other, sign)]
    curve = overlap_curve(one, other, side=side)
    assert curve["k"].tolist() == list(range(1, count + 1))
    for k, shared in zip(curve["k"], curve["shared"], strict=True):
        assert shared == pytest.approx(np.mean([len(set(a[:k]) & set(b[:k])) for a, b in ways]))


@given(count=st.integers(1, 5))
def test_chance_is_the_mean_over_all_orders(count: int) -> None:
    every = list(permutations(range(count)))
    curve = overlap_curve(range(count), range(count))
    for k, chance in zip(curve["k"], curve["chance"], strict=True):
        assert chance == pytest.approx(np.mean([len(set(order[:k]) & set(range(k))) for order in every]))


@given(values=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30, unique=True), power=st.sampled_from([1, 3]))
def test_only_the_order_counts(values: list[float], power: int) -> None:
    stretched = np.argsort(np.argsort(values)).astype(float) ** power
    curve = overlap_curve(values, stretched)
    assert curve["shared"].tolist() == curve["k"].tolist()


def test_what_has_no_value_is_left_out_of_both() -> None:
    curve = overlap_curve([3.0, np.nan, 2.0, 1.0], [1.0, 9.0, np.nan, 2.0])
    assert curve["k"].tolist() == [1, 2]
    assert curve["shared"].tolist() == [0.0, 2.0]


@pytest.mark.parametrize(("one", "other", "most"), [([1.0], [1.0, 2.0], 3), ([np.inf], [1.0], 3), ([1.0], [1.0], 0)])
def test_what_cannot_be_compared_is_refused(one: list[float], other: list[float], most: int) -> None:
    with pytest.raises(ViewError):
        overlap_curve(one, other, most=most)


@given(lists=st.lists(st.frozensets(st.sampled_from("abcd")), min_size=1, max_size=4))
def test_jaccard_counts_each_name_once(lists: list[frozenset[str]]) -> None:
    found = jaccard(lists)
    for i, one in enumerate(lists):
        for j, other in enumerate(lists):
            both = sum(name in one and name in other for name in "abcd")
            either = sum(name in one or name in other for name in "abcd")
            assert found[i, j] == (both / either if either else 1.0)
