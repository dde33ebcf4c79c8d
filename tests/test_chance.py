"""A model at chance is told from one that has learnt something."""

from itertools import combinations, permutations

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from lab import Studio, recipe_for
from test_pages import said, viewer

from tracin_core.records.runs import Run
from tracin_core.scores.chance import label_chance, number_chance, order_chance


@pytest.mark.parametrize("labels", ["01", "012", "0123", "012345", "001", "0011", "00112", "000112", "0000112", "0001122"])
def test_the_error_of_pairs_is_that_of_every_order_of_the_samples(labels: str) -> None:
    """Counted out: over all n! orders of the samples the accuracy has mean .5 and this standard deviation, however labels are shared."""
    pairs = [(one, two) for one, two in combinations(range(len(labels)), 2) if labels[one] != labels[two]]
    orders = np.array(list(permutations(range(len(labels)))))
    accuracies = np.mean([orders[:, one] < orders[:, two] for one, two in pairs], axis=0)
    found = order_chance([1.0] * len(pairs), list(labels))
    assert np.mean(accuracies) == pytest.approx(found.guess)
    assert np.std(accuracies) == pytest.approx(found.error)


@given(right=st.integers(0, 40), tied=st.integers(0, 20), wrong=st.integers(1, 40))
def test_a_tied_pair_is_half_right(right: int, tied: int, wrong: int) -> None:
    found = order_chance([2.0] * right + [0.0] * tied + [-1.0] * wrong, range(12))
    assert found.reached == pytest.approx((right + tied / 2) / (right + tied + wrong))
    assert found.passed == (found.reached > 0.5 + 2 * found.error)


def test_labels_are_held_against_the_most_frequent_one() -> None:
    """80 of 100 right is nothing where one label has 80 of them, and something where it has 50."""
    rare, even = np.repeat([0, 1], [80, 20]), np.repeat([0, 1], [50, 50])
    always = np.tile([1.0, 0.0], (100, 1))
    assert not label_chance(always, rare).passed
    some = np.eye(2)[np.where(np.arange(100) % 5 == 0, 1 - even, even)]
    found = label_chance(some, even)
    assert (found.reached, found.guess, found.passed) == (0.8, 0.5, True)
    assert found.error == pytest.approx(0.05)
    assert label_chance(some[:, 1] - 0.5, even).reached == 0.8  # one output: its sign


def test_numbers_are_held_against_the_mean() -> None:
    generator = np.random.default_rng(0)
    targets = generator.normal(size=50)
    assert not number_chance(np.zeros(50), targets, 0.0).passed  # the mean itself
    assert not number_chance(targets + 5, targets, 0.0).passed
    good = number_chance(targets + 0.1 * generator.normal(size=50), targets, 0.0)
    assert good.passed
    assert f"{np.mean(targets**2):.4g}" in good.detail


@pytest.fixture(scope="module")
def runs(studio: Studio) -> dict[bool, str]:
    """At chance or not -> run: the small lab's, of two epochs, and one of a longer training."""
    folder = studio.place.root / "trainings" / "longer"
    job = studio.place.start_training(studio.run.recipe, settings={"epochs": 15, "save_epochs": (15,)}, folder=folder)
    studio.place.queue.wait(job.id)
    longer = studio.place.compute(recipe_for(studio.run.recipe.data.place, folder))
    assert isinstance(longer, Run)
    found = {not run.above_chance.passed: run.id for run in (longer, studio.run)}
    assert set(found) == {True, False}
    return found


@pytest.mark.parametrize("at_chance", [True, False])
@pytest.mark.parametrize("page", sorted(path.stem for path in (ROOT / "pages").glob("*.py")))
def test_every_page_says_that_a_model_is_at_chance_before_any_influence(
    studio: Studio, runs: dict[bool, str], page: str, at_chance: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the line of the title, as one of its badges; and of a model that has learnt something, nowhere."""
    test = viewer(studio.place.root, monkeypatch)(page, run=runs[at_chance])
    assert not test.exception
    told = [said("en", "run.at_chance") in text.value for text in test.main.markdown]
    assert any(told[:2]) == any(told) == at_chance
