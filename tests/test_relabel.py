"""Pair universes and other labels, against pairs formed one by one and views of the rebuilt pairs."""

from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from influence_cases import CASES, FEW, FLOAT64, SETTINGS, TRAIN, Case, make_case

from tracin_core.data.samples import every_draw, listed_draws, pairs_of, random_draws
from tracin_core.errors import NotFoundError, UnknownSampleError, ViewError
from tracin_core.scores.losses import PairLoss
from tracin_core.scores.relabel import rebuilt, relabel_counts, relabelled
from tracin_core.scores.view import View

CLASSES = {0: 0, 1: 36, 2: 72}


def viewed(case: Case, loss: PairLoss, samples: pd.DataFrame, draws: pd.DataFrame) -> View:
    """The view of these labels, with the densities of the labels that were trained on."""
    oriented = loss.name == "ghm_legacy"
    old, new = (pairs_of(table, draws, oriented=oriented) for table in (case.train_samples, samples))
    return case.view(loss, train_pairs=new, train_samples=samples, population=old, strangers=rebuilt(old, new))


# ---- pair universes


def test_draws_are_those_of_the_legacy_generator_training_side_first() -> None:
    generator = np.random.RandomState(7)
    expected = [[tuple(generator.choice(n, 2, replace=False)) for _ in range(n * (n - 1) // 2)] for n in (6, 4)]
    for drawn, pairs in zip(random_draws((6, 4), 7), expected, strict=True):
        counted = {(int(a), int(b)): pairs.count((a, b)) for a, b in pairs}
        assert {(row.first, row.second): row.multiplicity for row in drawn.itertuples()} == counted
        assert drawn["multiplicity"].sum() == len(pairs)


@given(st.integers(0, 1000), st.booleans())
def test_drawn_pairs_keep_how_often_they_were_drawn(seed: int, oriented: bool) -> None:
    """Equal labels make no pair; a mirrored draw is the same pair, unless its orientation is kept."""
    samples, (draws,) = make_case(0).train_samples, random_draws((TRAIN,), seed)
    labels = samples["label"].tolist()
    expected: dict[tuple[int, int], int] = {}
    for draw in draws.itertuples():
        if labels[draw.first] != labels[draw.second]:
            pair = (draw.first, draw.second) if oriented else tuple(sorted((draw.first, draw.second)))
            expected[pair] = expected.get(pair, 0) + draw.multiplicity
    pairs = pairs_of(samples, draws, oriented=oriented)
    assert {(row.first, row.second): row.multiplicity for row in pairs.itertuples()} == expected
    assert all(row.target == (1 if labels[row.first] > labels[row.second] else -1) for row in pairs.itertuples())


def test_copies_multiply_what_a_removal_takes_away_and_no_single_score() -> None:
    case, loss = make_case(2), PairLoss(margin=4.0)
    (draws,) = random_draws((TRAIN,), 3)
    view = viewed(case, loss, case.train_samples, draws)
    whole = case.view(loss)
    rows = [whole.train_row(pair) for pair in view.train_pairs["id"]]
    np.testing.assert_allclose(view.influence(), whole.influence()[rows], **FLOAT64)
    expected = np.zeros((TRAIN, len(view.test_pairs)))
    for row, pair in enumerate(view.train_pairs.itertuples()):
        expected[[pair.first, pair.second]] += pair.multiplicity * view.influence()[row]
    assert view.train_pairs["multiplicity"].max() > 1
    np.testing.assert_allclose(view.sample_influence(), expected, **FLOAT64)


def test_listed_pairs_are_those_pairs() -> None:
    samples = make_case(0).train_samples
    pairs = pairs_of(samples, listed_draws(samples, [("a5", "a0"), ("a0", "a5"), ("a0", "a1"), ("a2", "a6")]))
    assert pairs["id"].tolist() == ["a0_a5", "a2_a6"]
    assert pairs["multiplicity"].tolist() == [2, 1]
    for wrong in (("a0", "nobody"), ("a1", "a1")):
        with pytest.raises(UnknownSampleError, match=f"'{wrong[1]}'"):
            listed_draws(samples, [wrong])


# ---- other labels


@FEW
@given(case=CASES, loss=SETTINGS, seed=st.integers(0, 99), drawn=st.booleans(), sample=st.integers(0, TRAIN - 1))
def test_a_relabels_effect_is_the_difference_of_two_views(case: Case, loss: PairLoss, seed: int, drawn: bool, sample: int) -> None:
    """For every label at once: what removing the relabelled sample takes away, minus what removing the sample takes away."""
    draws = random_draws((TRAIN,), seed)[0] if drawn else every_draw(TRAIN)
    view = viewed(case, loss, case.train_samples, draws)
    test = view.test_pairs["id"][2]
    effects = view.relabel_effects(draws, list(CLASSES), test)
    assert effects.columns.tolist() == [0, 1, 2]
    name = case.train_samples["id"][sample]
    old = view.sample_influence()[sample, 2]
    for label in CLASSES:
        other = viewed(case, loss, relabelled(case.train_samples, {name: label}, CLASSES), draws)
        expected = other.sample_influence()[sample, 2] - old
        np.testing.assert_allclose(effects.loc[name, label], expected, rtol=1e-9, atol=1e-7)
    assert effects.loc[name, case.train_samples["label"][sample]] == 0


def test_without_a_test_the_effect_is_the_mean_over_live_tests() -> None:
    case, loss = make_case(1), PairLoss(margin=1.0)
    view = case.view(loss)
    draws = every_draw(TRAIN)
    live = view.test_pairs["id"][~view.dead_tests]
    each = [view.relabel_effects(draws, list(CLASSES), test).to_numpy() for test in live]
    np.testing.assert_allclose(view.relabel_effects(draws, list(CLASSES)), np.mean(each, axis=0), **FLOAT64)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from([f"a{n}" for n in range(TRAIN)]), st.sampled_from(list(CLASSES)), min_size=1, max_size=3))
def test_the_four_counts_are_those_of_the_pairs(relabel: dict[str, int]) -> None:
    old = make_case(0).train_samples
    new = relabelled(old, relabel, CLASSES)
    assert new["angle"].tolist() == [CLASSES[label] for label in new["label"]]
    counts = {"turned": 0, "vanished": 0, "born": 0, "unchanged": 0}
    for i, j in product(range(TRAIN), range(TRAIN)):
        if i < j and {old["id"][i], old["id"][j]} & set(relabel):
            before, after = (np.sign(table["label"][i] - table["label"][j]) for table in (old, new))
            if before or after:
                counts["vanished" if not after else "born" if not before else "unchanged" if before == after else "turned"] += 1
    draws = every_draw(TRAIN)
    places = [row for row, name in enumerate(old["id"]) if name in relabel]
    assert relabel_counts(pairs_of(old, draws), pairs_of(new, draws), places).__dict__ == counts


def test_pair_ids_survive_a_new_label() -> None:
    """Orientation is sample order, never the higher label first."""
    old = make_case(0).train_samples
    draws = every_draw(TRAIN)
    before, after = pairs_of(old, draws), pairs_of(relabelled(old, {"a0": 2}, CLASSES), draws)
    shared = set(before["id"]) & set(after["id"])
    assert "a0_a2" in shared
    assert before.set_index("id")["target"]["a0_a2"] == -after.set_index("id")["target"]["a0_a2"]


@pytest.mark.parametrize(
    ("relabel", "kind", "told"),
    [
        ({"nobody": 1}, NotFoundError, "no training sample 'nobody'"),
        ({"a0": 9}, ViewError, r"cannot have the label 9; this run's labels are \[0, 1, 2\]"),
    ],
)
def test_a_label_or_sample_that_is_not_there_is_refused(relabel: dict[str, int], kind: Any, told: str) -> None:
    with pytest.raises(kind, match=told):
        relabelled(make_case(0).train_samples, relabel, CLASSES)
