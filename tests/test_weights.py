"""Checkpoint weights against sums over single steps, and what is asked for rather than guessed."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracin_core.errors import ViewError
from tracin_core.scores.weights import checkpoint_weights, rate_sums

EXAMPLES, BATCH = 100, 32
STEPS = 4  # an epoch: ceil(100 / 32)


def table(epochs: list[int], rates: list[float | None], *, recorded: bool = True, **arguments: Any) -> pd.DataFrame:
    """Checkpoints of a training whose rate in epoch e is rates[e - 1]; `rates` of all epochs."""
    sums = np.cumsum([0.0, *(STEPS * (rate or 0.0) for rate in rates)])
    rows = [
        {
            "epoch": epoch,
            "learning_rate": rates[max(epoch, 1) - 1],
            "rate_sum": float(sums[epoch]) if recorded else None,
            "arguments": {"batch_size": BATCH, **arguments},
        }
        for epoch in epochs
    ]
    return pd.DataFrame(rows)


def weights(asked: Any, checkpoints: pd.DataFrame, half_life: float | None = None) -> list[float]:
    return checkpoint_weights(asked, checkpoints, examples=EXAMPLES, half_life=half_life).values.tolist()


EPOCHS = st.lists(st.integers(0, 12), min_size=1, max_size=6, unique=True).map(sorted)
RATES = st.lists(st.floats(0.001, 1.0), min_size=12, max_size=12)


@given(epochs=EPOCHS, rates=RATES)
def test_step_sum_is_the_trapezoid_of_single_steps(epochs: list[int], rates: list[float]) -> None:
    """Each step's rate goes half to the checkpoint before it and half to the one after; what lies before the first goes to it whole."""
    expected = dict.fromkeys(epochs, 0.0)
    for epoch, rate in enumerate(rates, start=1):
        for _ in range(STEPS):
            before = [known for known in epochs if known < epoch]
            after = [known for known in epochs if known >= epoch]
            if before and after:
                expected[before[-1]] += rate / EXAMPLES / 2
                expected[after[0]] += rate / EXAMPLES / 2
            elif after:
                expected[after[0]] += rate / EXAMPLES
    np.testing.assert_allclose(weights("step_sum", table(epochs, list(rates))), list(expected.values()), rtol=1e-9, atol=1e-15)


@given(epochs=EPOCHS, rate=st.floats(0.001, 1.0))
def test_steps_are_counted_where_their_sum_is_not_recorded(epochs: list[int], rate: float) -> None:
    """At a constant rate that is exact, and the assumption is told."""
    told = checkpoint_weights("step_sum", table(epochs, [rate] * 12, recorded=False), examples=EXAMPLES)
    np.testing.assert_allclose(told.values, weights("step_sum", table(epochs, [rate] * 12)), rtol=1e-9, atol=1e-15)
    assert "epochs x 4 batches of 32" in told.note


def test_a_rate_that_changed_between_checkpoints_is_flagged() -> None:
    told = rate_sums(table([2, 4], [0.4, 0.4, 0.1, 0.1, *[0.1] * 8], recorded=False), EXAMPLES)
    assert "takes the mean of its two ends" in told[1]
    np.testing.assert_allclose(told[0], [2 * STEPS * 0.4, 2 * STEPS * 0.4 + 2 * STEPS * 0.25])
    assert (
        "the rate after the checkpoint" in checkpoint_weights("learning_rate", table([2, 4], [0.4, 0.4, 0.1, 0.1]), examples=9).note
    )


def test_evenly_spaced_checkpoints_at_a_constant_rate_agree_up_to_a_factor() -> None:
    """But for the last, which has nothing after it."""
    even = table([2, 4, 6, 8], [0.1] * 12)
    assert weights("uniform", even) == [1, 1, 1, 1]
    assert weights("learning_rate", even) == [0.1] * 4
    summed = np.array(weights("step_sum", even))
    np.testing.assert_allclose(summed / summed[1], [1.5, 1, 1, 0.5])


def test_weights_belong_to_the_chosen_checkpoints() -> None:
    """Leaving out a checkpoint widens its neighbours' gaps; nothing is lost."""
    full, fewer = (np.array(weights("step_sum", table(epochs, [0.1] * 12))) for epochs in ([2, 4, 6, 8], [2, 8]))
    assert full.sum() == pytest.approx(fewer.sum())
    assert fewer[1] > full[3]


def test_recency_is_a_half_life_or_what_weight_decay_leaves() -> None:
    assert weights("recency", table([2, 4, 8], [0.1] * 12), 4.0) == [0.5**1.5, 0.5, 1.0]
    decayed = weights("recency", table([2, 4, 8], [0.1] * 12, weight_decay=0.01))
    later = [STEPS * 6, STEPS * 4, 0]
    np.testing.assert_allclose(decayed, [(1 - 0.1 * 0.01) ** steps for steps in later], rtol=1e-4)


@pytest.mark.parametrize(
    ("asked", "checkpoints", "half_life", "told"),
    [
        ("evenly", table([1], [0.1]), None, "named 'evenly'; choose uniform, learning_rate, step_sum, recency"),
        ([1.0], table([1, 2], [0.1, 0.1]), None, "1 checkpoint weights were given for 2"),
        ([1.0, float("inf")], table([1, 2], [0.1, 0.1]), None, "one finite number each"),
        ("learning_rate", table([1, 2], [0.1, None]), None, "epoch 2 records no learning rate"),
        ("step_sum", table([1, 2], [0.1, 0.1], recorded=False, batch_size=None), None, "neither the sum"),
        ("recency", table([1, 2], [0.1, 0.1]), None, "give a half_life"),
        ("recency", table([1, 2], [0.1, 0.1]), 0.0, "half-life is 0.0"),
        ("uniform", table([1, 2], [0.1, 0.1]), float("nan"), "half-life is nan"),
    ],
)
def test_what_a_rule_needs_is_asked_for(asked: Any, checkpoints: pd.DataFrame, half_life: float | None, told: str) -> None:
    with pytest.raises(ViewError, match=told):
        checkpoint_weights(asked, checkpoints, examples=EXAMPLES, half_life=half_life)


def test_a_subset_of_unrecorded_sums_knows_the_rates_of_the_checkpoints_between() -> None:
    full = table([1, 2, 10], [0.1, *[0.01] * 11], recorded=False)
    every = rate_sums(full, EXAMPLES)[0]
    found = checkpoint_weights("step_sum", full, rows=[0, 2], examples=EXAMPLES).values
    np.testing.assert_allclose(found, [(every[0] + (every[2] - every[0]) / 2) / EXAMPLES, (every[2] - every[0]) / 2 / EXAMPLES])
    with pytest.raises(ViewError, match="not in the order of their epochs"):
        checkpoint_weights("step_sum", full, rows=[2, 0], examples=EXAMPLES)
