"""Two sets of scores side by side: agreement by order alone, what two runs differ in, and the page that shows both."""

import copy
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise, permutations
from typing import Any

import lab
import numpy as np
import pytest
from conftest import Server, idle, opened, texts_of, visit
from hypothesis import given
from hypothesis import strategies as st
from playwright.sync_api import Page, expect
from scipy.stats import spearmanr
from streamlit.testing.v1 import AppTest

from pages.shared import comparing_figures
from pages.shared.i18n import LANGUAGES, texts
from tracin_core.data.readers import list_recordings, read_inputs
from tracin_core.data.samples import split_samples
from tracin_core.engine.training import train_ranker
from tracin_core.errors import ViewError
from tracin_core.records.differences import differ_only_in_seed, differences
from tracin_core.records.runs import Run
from tracin_core.records.workspace import Workspace, open_workspace
from tracin_core.scores.agreement import jaccard, overlap_curve
from tracin_core.scores.view import View

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


# ---- what two runs differ in ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Studio:
    """A workspace with three runs: two seeds of one training, and one with another margin and more epochs."""

    place: Workspace
    runs: tuple[Run, ...]


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    place = open_workspace(tmp_path_factory.mktemp("compare"))
    recordings = lab.make_recordings(place.root / "recordings" / "small", takes=6)
    samples = split_samples(list_recordings(recordings, lab.MATERIAL, lab.FREQUENCY), lab.SPLIT)
    inputs = read_inputs(recordings, samples)
    trainings: dict[str, dict[str, Any]] = {"one": {"seed": 42}, "two": {"seed": 43}, "far": {"seed": 42, "margin": 2.0}}
    runs = []
    for name, settings in trainings.items():
        folder = place.root / "trainings" / name
        train_ranker(inputs, samples, folder, epochs=2, save_epochs=(1, 2), **settings)
        run = place.compute(lab.recipe_for(recordings, folder).model_copy(update={"name": name}))
        assert isinstance(run, Run)
        runs.append(run)
    yield Studio(place, tuple(runs))
    lab.stop_worker(place)


def test_runs_differ_in_what_they_record(studio: Studio) -> None:
    one, two, far = studio.runs
    assert differences(one, one) == {}
    assert differences(one, two) == {"arguments.seed": ("42", "43")}
    assert {"arguments.margin", "loss"} <= set(differences(one, far))
    assert differ_only_in_seed(one, two)
    assert not differ_only_in_seed(one, one)
    assert not differ_only_in_seed(one, far)


@pytest.mark.parametrize(
    "told",
    [{"seed": None}, {"exclusions_file": "list.txt"}, {"momentum": 0.5}, {"unheard_of": 1}],
    ids=lambda told: next(iter(told)),
)
def test_what_is_not_known_to_be_the_seed_alone_is_no_noise(studio: Studio, told: dict[str, Any]) -> None:
    one, two = (copy.copy(run) for run in studio.runs[:2])
    both = "exclusions_file" in told  # the same name says nothing of what the list held
    for run in (one, two) if both else (two,):
        points = tuple({**point, "arguments": {**point["arguments"], **told}} for point in run.manifest.checkpoints)
        run.manifest = replace(run.manifest, checkpoints=points)
    assert not differ_only_in_seed(one, two)


# ---- the page -------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def look(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> Callable[..., AppTest]:
    monkeypatch.setenv("TRACIN_WORKSPACE", str(studio.place.root))

    def look_(**parameters: str) -> AppTest:
        test = opened("compare", **{"run": studio.runs[0].id, **parameters})
        assert not test.exception
        return test

    return look_


def said(key: str, language: str = "en", **values: object) -> str:
    return texts(language)[key].format(**values)


def ranks(view: View, values: Any) -> dict[frozenset[str], float]:
    """The place of each pair, highest first, by counting; ties share their mean."""
    ends = [frozenset(pair) for pair in view.train_pairs[["id1", "id2"]].itertuples(index=False)]
    return {end: 1 + sum(values > value) + (sum(values == value) - 1) / 2 for end, value in zip(ends, values, strict=True)}


@pytest.mark.parametrize("language", LANGUAGES)
def test_two_seeds_are_told_as_noise(look: Callable[..., AppTest], studio: Studio, language: str) -> None:
    one, two, _ = studio.runs
    test = look(compare="run", vs=two.id, lang=language)
    assert not test.error
    a, b = (ranks(run.view(), run.view().self_influence()) for run in (one, two))
    shared = sum(a[pair] <= 20 and b[pair] <= 20 for pair in a)
    assert test.metric[1].value == said("compare.of", language, shared=shared, k=20)
    moves = np.array([abs(a[pair] - b[pair]) for pair in a])
    assert said("compare.noise.is", language, k=20, shared=shared, places=f"{np.median(moves):,.0f}") in texts_of(test)
    movers = next(table.value for table in test.dataframe if "rank_change" in table.value)
    assert movers["rank_change"].abs().iloc[0] == moves.max()
    assert np.isclose(float(test.metric[0].value), spearmanr([*a.values()], [b[pair] for pair in a]).statistic, atol=6e-4)


def test_another_difference_is_held_against_the_seeds(look: Callable[..., AppTest], studio: Studio) -> None:
    test = look(compare="run", vs=studio.runs[2].id)
    assert any(said(f"compare.noise.{kind}", **dict.fromkeys(("n", "band", "k", "noise", "shared", "places"), "0"))[:20] in texts_of(test)
               for kind in ("beyond", "within"))  # fmt: skip
    assert said("compare.noise.unknown") not in texts_of(test)
    test = look(run=studio.runs[2].id, compare="loss")
    assert said("compare.noise.unknown") in texts_of(test)


def test_lists_at_the_same_quantile(look: Callable[..., AppTest], studio: Studio) -> None:
    one, two, _ = studio.runs
    test = look(compare="run", vs=two.id, share="10")
    listed = []
    for run in (one, two):
        own = run.view().self_influence()
        chosen = run.view().train_pairs[own > np.quantile(own, 0.9)]
        listed.append({frozenset(pair) for pair in chosen[["id1", "id2"]].itertuples(index=False)})
    told = [metric.value for metric in test.metric[-3:]]
    assert told == [str(len(part)) for part in (listed[0] & listed[1], listed[0] - listed[1], listed[1] - listed[0])]


@pytest.mark.parametrize("kind", ["loss", "checkpoints", "method"])
@pytest.mark.parametrize("score", ["self_influence", "test_influence"])
def test_losses_checkpoints_and_methods(look: Callable[..., AppTest], studio: Studio, kind: str, score: str) -> None:
    run = studio.runs[0]
    test = look(compare=kind, score=score)
    assert not test.error
    assert not test.warning
    asked = {key: value[0] if isinstance(value, list) else value for key, value in test.query_params.items()}
    if kind == "checkpoints":
        views = [run.view(checkpoints=[int(part) for part in asked[f"epochs_{side}"].split(",")]) for side in "ab"]
    elif kind == "loss":
        views = [run.view(loss=asked[f"loss_{side}"]) for side in "ab"]
    else:
        views = [run.methods().mapped(asked[f"method_{side}"]) for side in "ab"]
    values = [view.self_influence() if score == "self_influence" else view.influence(asked["test"]) for view in views]
    expected = spearmanr(*values).statistic
    assert np.isclose(float(test.metric[0].value), expected, atol=6e-4)


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({"compare": "run", "vs": "nope"}, "There is no run 'nope'"),
        ({"compare": "nothing"}, "compare = nothing"),
        ({"compare": "loss", "loss_a": "huber"}, "loss_a = huber"),
        ({"compare": "method", "method_b": "guess"}, "method_b = guess"),
        ({"compare": "checkpoints", "epochs_a": "1,9"}, "epochs_a = 1,9"),
        ({"compare": "checkpoints", "epochs_b": "1;2"}, "epochs_b = 1;2"),
        ({"compare": "loss", "share": "0"}, "share = 0"),
        ({"compare": "loss", "score": "test_influence", "test": "no such"}, "test = no such"),
    ],
    ids=lambda value: next(iter(value.values())) if isinstance(value, dict) else None,
)
def test_what_a_link_asks_in_vain_is_said(look: Callable[..., AppTest], parameters: dict[str, str], told: str) -> None:
    test = look(**parameters)
    assert told in "".join(str(element.value) for element in (*test.warning, *test.error)).replace("\\", "")


def test_the_same_on_both_sides_is_said(look: Callable[..., AppTest]) -> None:
    test = look(compare="loss", loss_a="ghm", loss_b="ghm")
    assert said("compare.same") in texts_of(test)
    assert not test.metric


# ---- figures --------------------------------------------------------------------------------------------------------------------


def test_many_examples_are_counted_in_squares() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(2, comparing_figures.MANY + 1)) ** 3
    names = np.arange(len(a)).astype(str)
    axes = comparing_figures.axes(a, b, own=False)
    figure = comparing_figures.scatter_figure(a, b, names, axes, x="A", y="B", count="pairs")
    assert figure.data[0].type == "heatmap"
    assert np.nansum(figure.data[0].customdata) == len(a)
    figure = comparing_figures.scatter_figure(a[:-1], b[:-1], names[:-1], axes, x="A", y="B", count="pairs")
    assert figure.data[0].type == "scatter"
    assert len(figure.data[0].x) == comparing_figures.MANY


# ---- in a browser ---------------------------------------------------------------------------------------------------------------


@pytest.mark.browser
def test_two_losses_are_compared_in_a_browser(page: Page, serve: Callable[..., Server], studio: Studio) -> None:
    """Another loss by the picker: the figures are those of the two views, and the link holds it."""
    failures: list[str] = []
    page.on("pageerror", lambda failure: failures.append(str(failure)))
    server = serve(studio.place.root)
    visit(page, f"{server.url}/compare?run={studio.runs[0].id}&compare=loss")
    expect(page.locator(".js-plotly-plot")).to_have_count(2)
    page.get_by_role("combobox", name="Loss B").click()
    page.get_by_role("option", name="logistic", exact=True).click()
    idle(page)
    expect(page).to_have_url(re.compile("loss_b=logistic"))
    one, other = (studio.runs[0].view(loss=loss).self_influence() for loss in (None, "logistic"))
    expect(page.get_by_test_id("stMetricValue").first).to_have_text(f"{spearmanr(one, other).statistic:.3f}")
    expect(page.get_by_text("Something unexpected went wrong")).to_have_count(0)
    page.get_by_text("Two sets of checkpoints").click()
    idle(page)
    expect(page).to_have_url(re.compile("compare=checkpoints"))
    assert not failures
