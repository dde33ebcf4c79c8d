"""Splits and pairs: every sample on one side, every pair once, and ids that can be told apart."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tracin_core.data.samples import (
    all_pairs,
    require_classes,
    split_pair_id,
    split_samples,
    stratified_pairs,
    torch_permutation,
)
from tracin_core.errors import DataError, TooFewClassesError, UnknownSampleError
from tracin_core.recipe import SplitSection

ANGLES = (0, 36, 72)


def table(takes: int = 6, angles: tuple[int, ...] = ANGLES) -> pd.DataFrame:
    """One sample per angle and take, sorted by id."""
    rows = [
        {
            "id": f"my_box_deg{angle:03d}_500hz_{take:02d}",
            "label": label,
            "angle": angle,
            "material": "my_box",
            "frequency": "500hz",
            "sequence": take,
        }
        for label, angle in enumerate(angles)
        for take in range(takes)
    ]
    return pd.DataFrame(rows, columns=["id", "label", "angle", "material", "frequency", "sequence"])


def sides(samples: pd.DataFrame, section: SplitSection) -> dict[str, set[int]]:
    split = split_samples(samples, section)
    return {side: set(split.loc[split["split"] == side, "sequence"]) for side in ("train", "validation", "test")}


@given(
    train=st.integers(1, 5),
    validation=st.integers(1, 4),
    test=st.integers(0, 4),
    more=st.integers(0, 3),
    seed=st.integers(0, 2**31),
)
def test_a_take_is_on_one_side(train: int, validation: int, test: int, more: int, seed: int) -> None:
    """Takes are dealt out whole, in the asked numbers, and what is over goes to the test side."""
    section = SplitSection(train=train, validation=validation, test=test, seed=seed)
    dealt = sides(table(train + validation + test + more), section)
    assert [len(dealt[side]) for side in ("train", "validation", "test")] == [train, validation, test + more]
    assert set.union(*dealt.values()) == set(range(train + validation + test + more))


def test_takes_follow_the_seed() -> None:
    """The rule is the legacy permutation of the distinct take numbers, gaps in them included."""
    samples = table(20)
    samples["sequence"] *= 3
    order = np.random.RandomState(5).permutation(np.arange(20) * 3)
    dealt = sides(samples, SplitSection(seed=5))
    assert dealt == {"train": set(order[:10]), "validation": set(order[10:14]), "test": set(order[14:])}


def test_too_few_takes_are_refused_with_numbers() -> None:
    with pytest.raises(DataError, match=r"asks for 10 \+ 4 \+ 6 takes, but the recordings have 6"):
        split_samples(table(6), SplitSection())


@given(count=st.integers(0, 300), seed=st.integers(0, 2**32 - 1))
def test_permutation_is_torchs(count: int, seed: int) -> None:
    """The lab's split can be repeated without torch."""
    expected = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).numpy()
    np.testing.assert_array_equal(torch_permutation(count, seed), expected)


@given(takes=st.integers(1, 40), seed=st.integers(0, 2**31))
def test_random_split_is_the_labs(takes: int, seed: int) -> None:
    """`floor(0.7 n)` samples train, exactly those that `random_split` picks; there is no test side."""
    samples = table(takes)
    split = split_samples(samples, SplitSection(rule="random", seed=seed))["split"].to_numpy()
    trained = int(np.floor(0.7 * len(samples)))
    first, _ = torch.utils.data.random_split(
        range(len(samples)), [trained, len(samples) - trained], generator=torch.Generator().manual_seed(seed)
    )
    assert set(np.flatnonzero(split == "train")) == set(first.indices)
    assert set(split) <= {"train", "validation"}


def test_a_split_changes_nothing_else() -> None:
    """Rows keep their order and values, and the table that was given stays as it was."""
    samples = table(6)
    before = samples.copy()
    pd.testing.assert_frame_equal(split_samples(samples, SplitSection(train=3, validation=2, test=1)).drop(columns="split"), before)
    pd.testing.assert_frame_equal(samples, before)


@given(labels=st.lists(st.integers(0, 4), max_size=14))
def test_every_unordered_pair_once(labels: list[int]) -> None:
    """All pairs of different labels, once each, oriented in sample order, with the larger label winning."""
    rows = [(f"s{row}", label, 36 * label) for row, label in enumerate(labels)]
    samples = pd.DataFrame(rows, columns=["id", "label", "angle"]).astype({"id": object, "label": int, "angle": int})
    pairs = all_pairs(samples)
    expected = [
        (i, j, 1 if labels[i] > labels[j] else -1, 36 * abs(labels[i] - labels[j]))
        for i in range(len(labels))
        for j in range(i + 1, len(labels))
        if labels[i] != labels[j]
    ]
    assert list(pairs[["first", "second", "target", "gap"]].itertuples(index=False, name=None)) == expected
    assert list(pairs["id"]) == [f"s{i}_s{j}" for i, j, *_ in expected]


@settings(deadline=None)
@given(count=st.integers(0, 400), seed=st.integers(0, 1000))
def test_stratified_pairs_are_even_over_gaps(count: int, seed: int) -> None:
    """No gap has two pairs more than another unless that one is used up; order and rows are those of the whole table."""
    pairs = all_pairs(table(4, (0, 36, 72, 108)))
    chosen = stratified_pairs(pairs, count, seed)
    assert len(chosen) == min(count, len(pairs))
    there = pairs["gap"].value_counts()
    taken = chosen["gap"].value_counts().reindex(there.index, fill_value=0)
    open_gaps = taken[taken < there]
    assert open_gaps.empty or taken.max() - open_gaps.min() <= 1
    assert list(chosen["id"]) == [name for name in pairs["id"] if name in set(chosen["id"])]
    pd.testing.assert_frame_equal(chosen, stratified_pairs(pairs, count, seed))


def test_one_angle_cannot_be_ranked() -> None:
    require_classes(table(1))
    with pytest.raises(TooFewClassesError, match="only the angle 36°"):
        require_classes(table(4, (36,)))
    with pytest.raises(TooFewClassesError, match="no sample"):
        require_classes(table(0))


def test_pair_ids_come_apart() -> None:
    """Ids with underscores in them are found among the known ones, whichever they are."""
    pairs = all_pairs(table(2))
    known = set(table(2)["id"])
    assert [split_pair_id(joined, known) for joined in pairs["id"]] == list(zip(pairs["id1"], pairs["id2"], strict=True))


@pytest.mark.parametrize(
    ("joined", "known", "told"),
    [
        ("a_b", {"a"}, "no two samples"),
        ("", {"a", "b"}, "no two samples"),
        ("a_b_c", {"a", "a_b", "b_c", "c"}, "2 different pairs"),
    ],
)
def test_doubtful_pair_ids_are_refused(joined: str, known: set[str], told: str) -> None:
    with pytest.raises(UnknownSampleError, match=told):
        split_pair_id(joined, known)
