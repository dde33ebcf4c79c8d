"""A report says what the numbers say and nothing else, in two languages, from one file that asks nobody for anything."""

import ast
import dataclasses
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from string import Formatter
from typing import Any

import lab
import numpy as np
import pandas as pd
import pytest
from conftest import visit
from playwright.sync_api import Page, expect
from test_import import computed, files_of, per_batch

from tracin_core.errors import InputError, ViewError
from tracin_core.recipe import Recipe
from tracin_core.records import report
from tracin_core.records.imports import import_scores
from tracin_core.records.report import decisions, facts, report_html, report_markdown, sentences
from tracin_core.records.report.decisions import Listed, Retrained, Trainings
from tracin_core.records.report.facts import Cases, Health, Losses, Notable, Signs, Spread, Strongest
from tracin_core.records.report.rendering import as_html, as_markdown, plain
from tracin_core.records.report.sections import SECTIONS, document
from tracin_core.records.report.sentences import Sentences
from tracin_core.records.report.texts import LANGUAGES, Words, catalogue
from tracin_core.records.runs import Run
from tracin_core.records.trainings import own_training
from tracin_core.records.workspace import Workspace, open_workspace
from tracin_core.scores.agreement import Comparison
from tracin_core.scores.imported import ImportedPairs, ImportedScores, ImportedView
from tracin_core.scores.patterns import Recurrence, most_harmful

MEGABYTE = 1_000_000
HOSTILE = "<script>window.pwned = 1</script>"
LINK = '<a href="https://example.org/">x</a>'


# ---- runs ---------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    workspace = open_workspace(tmp_path_factory.mktemp("report"))
    yield workspace
    lab.stop_worker(workspace)


@pytest.fixture(scope="module")
def ranking(place: Workspace, shelf: lab.Shelf) -> Run:
    """Simulated recordings, under a name that is markup."""
    run = place.compute(Recipe.from_dict({**shelf.recipe(3).to_dict(), "name": HOSTILE}))
    assert isinstance(run, Run)
    return run


@pytest.fixture(scope="module")
def classes(place: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Points of three classes whose names are markup."""
    file = lab.write_arrays(tmp_path_factory.mktemp("arrays") / "points.npz")
    with np.load(file) as arrays:
        kept = dict(arrays)
    kept["kind"] = np.array([HOSTILE, LINK, "plain | **bold**"])[kept["kind"]]
    np.savez(file, **kept)
    return analysed(place, file, "kind", {"kind": "classification"}, outputs=3)


@pytest.fixture(scope="module")
def large(place: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """More than 100,000 training pairs."""
    generator, count = np.random.default_rng(3), 1000
    order = 36 * (np.arange(count) % 6)
    x = generator.normal(size=(count, 4)) + order[:, None] / 100
    file = tmp_path_factory.mktemp("large") / "points.npz"
    np.savez(file, x=x.astype(np.float32), order=order, id=np.array([f"point_{row:04d}" for row in range(count)]))
    run = analysed(place, file, "order", {"kind": "ranking", "margin": 1.0, "loss": "margin", "test_pairs": 40}, batch_pairs=8192)
    assert len(run.train_pairs) > 100_000
    return run


def analysed(place: Workspace, file: Path, target: str, task: dict[str, Any], outputs: int = 1, **settings: Any) -> Run:
    """Trained for two epochs by the product's own training, then analysed."""
    folder = place.root / "trainings" / f"{file.parent.name}"
    job = place.start_training(
        lab.arrays_recipe(file, folder, target, task, outputs), settings={**lab.SHORT, **settings}, folder=folder
    )
    place.queue.wait(job.id)
    run = place.compute(lab.arrays_recipe(file, folder, target, task, outputs))
    assert isinstance(run, Run)
    return run


@pytest.fixture(scope="module")
def pages(place: Workspace) -> Callable[..., str]:
    """`pages(run, "en")`: the run's report as HTML, written once."""

    @cache
    def page(run: Run, language: str = "en") -> str:
        return report.report_html(run, language, place=place)

    return page


# ---- texts --------------------------------------------------------------------------------------------------------------------------


def placeholders(text: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(text) if name is not None}


def test_both_languages_say_the_same_things() -> None:
    english, chinese = (catalogue(language) for language in LANGUAGES)
    assert list(english) == list(chinese)
    assert {key: placeholders(text) for key, text in english.items()} == {key: placeholders(text) for key, text in chinese.items()}


def test_chinese_is_chinese_and_nothing_is_empty() -> None:
    for key, text in catalogue("zh-TW").items():
        words = re.sub(r"{[^}]*}", "", text)
        assert words.strip() or placeholders(text), key
        assert re.search(r"[\u4e00-\u9fff]", words) or not re.search(r"[a-z]{4}", words), f"{key} is not translated: {text}"


def test_a_form_for_samples_takes_no_more_than_the_text_it_stands_for() -> None:
    texts = catalogue("en")
    for key in (key for key in texts if "@" in key):
        base, _, examples = key.partition("@")
        assert examples in ("sample", "imported")
        assert placeholders(texts[key]) <= placeholders(texts[base]), key


def test_another_language_is_refused_with_those_there_are() -> None:
    with pytest.raises(ViewError, match=r"no report in 'fr'; choose from en, zh-TW"):
        catalogue("fr")


# ---- each claim, where it is true and where it is false -----------------------------------------------------------------------------

CHECKS = pd.DataFrame({"check": ["a", "b"], "passed": [True, True], "value": 0.0, "detail": ""})
HEALTH = Health(CHECKS, tests=10, dead=0, accuracy=0.9, guess=0.5)
SPREAD = Spread(n=100, zeros=10, low=0.1, median=1.0, high=2.0, top=1, top_share=0.3)
PAIR = pd.Series({"id": "a_b", "id1": "a", "id2": "b", "angle1": 0, "angle2": 36})
NOTABLE = Notable(PAIR, 3.0, 99.0, -1.0, 2.0, harms=4, live=5)
STRONGEST = Strongest(NOTABLE, PAIR, -6.0, (-5.0, -2.0, 1.0), ("epoch 1", "epoch 2", "epoch 3"))
GROUPS = pd.DataFrame(
    {"group": ["a", "b"], "pairs": 9, "chosen": [5, 0], "expected": 1.0, "p": 0.001, "q": 0.01, "p_familywise": [0.01, 1.0]}
)
CASES = Cases(NOTABLE, 5, STRONGEST, Recurrence(GROUPS, 7, 90, 0.01), harmful=7)
LOSSES = Losses("ghm", "margin", Comparison(pd.DataFrame(), 0.5, pd.DataFrame(), 0, 0), {10: 4})
LISTED = Listed("l.txt", 0.0, "", "", 3, ("x", "y", "z"), {"threshold": -1}, removed=30, of=90, halved=2)
MEASURED = pd.DataFrame({"measure": ["test_accuracy"], "before": [0.8], "after": [0.9]})
RETRAINED = Retrained("after", "l.txt", 0, 3, MEASURED, ("seed",))
TRAININGS = Trainings(True, (0, 0), (RETRAINED,), ())


def having(facts_: Any, **change: Any) -> Any:
    return dataclasses.replace(facts_, **change)


def grid(*means: float) -> pd.DataFrame:
    return pd.DataFrame({"low": 0, "high": range(len(means)), "n": 3, "mean": means})


def gaps(*means: float) -> pd.DataFrame:
    return pd.DataFrame({"group": [36 * (place + 1) for place in range(len(means))], "n": 3, "self_influence": means})


def recurring(p: float) -> Cases:
    return having(CASES, recurring=Recurrence(GROUPS.assign(p_familywise=[p, 1.0]), 7, 90, p))


ALL_DEAD = having(HEALTH, dead=10)
ONE_FAILED = having(HEALTH, checks=CHECKS.assign(passed=[True, False]))
UNDEFINED = having(LOSSES, comparison=Comparison(pd.DataFrame(), np.nan, pd.DataFrame(), 0, 0))
BETTER, WORSE, SAME = (having(RETRAINED, measured=MEASURED.assign(after=after)) for after in (0.9, 0.7, 0.8))

# key -> who says it, facts of which it is true, facts of which it is not
CLAIMS: dict[str, tuple[Callable[[Any], Sentences], Any, Any]] = {
    "health.all": (sentences.of_health, HEALTH, ONE_FAILED),
    "health.failed": (sentences.of_health, ONE_FAILED, HEALTH),
    "accuracy": (sentences.of_health, HEALTH, having(HEALTH, accuracy=None)),
    "accuracy.guessing": (sentences.of_health, having(HEALTH, accuracy=0.5), having(HEALTH, accuracy=0.51)),
    "tests.live": (sentences.of_health, HEALTH, having(HEALTH, dead=1)),
    "tests.dead": (sentences.of_health, having(HEALTH, dead=9), ALL_DEAD),
    "tests.all_dead": (sentences.of_health, ALL_DEAD, having(HEALTH, dead=9)),
    "spread": (sentences.of_spread, SPREAD, having(SPREAD, zeros=100)),
    "spread.nothing": (sentences.of_spread, having(SPREAD, zeros=100), SPREAD),
    "spread.zeros": (sentences.of_spread, SPREAD, having(SPREAD, zeros=0)),
    "spread.no_zeros": (sentences.of_spread, having(SPREAD, zeros=0), SPREAD),
    "spread.mostly_zeros": (sentences.of_spread, having(SPREAD, zeros=51), having(SPREAD, zeros=50)),
    "spread.top": (sentences.of_spread, SPREAD, having(SPREAD, top_share=None)),
    "cells.self_influence": (lambda cells: sentences.of_cells(cells, "self_influence"), grid(1, 2), grid(1)),
    "cells.self_influence.same": (lambda cells: sentences.of_cells(cells, "self_influence"), grid(1, 1), grid(1, 2)),
    "cells.mean_influence": (lambda cells: sentences.of_cells(cells, "mean_influence"), grid(1, -2, np.nan), grid(1, 1, np.nan)),
    "cells.mean_influence.same": (lambda cells: sentences.of_cells(cells, "mean_influence"), grid(1, 1), grid(np.nan)),
    "gaps.falls": (sentences.of_gaps, gaps(3, 2, 1), gaps(3, 2, 2)),
    "gaps.rises": (sentences.of_gaps, gaps(1, 2, 3), gaps(1, 2)),
    "gaps.neither": (sentences.of_gaps, gaps(1, 3, 2), gaps(3, 2, 1)),
    "hard": (sentences.of_hard, CASES, having(CASES, hard_and_harmful=None)),
    "hard.none": (sentences.of_hard, having(CASES, hard_and_harmful=None), CASES),
    "standing": (sentences.of_hard, CASES, having(CASES, hard_and_harmful=None)),
    "strongest": (sentences.of_strongest, STRONGEST, None),
    "strongest.none": (sentences.of_strongest, None, STRONGEST),
    "strongest.checkpoint": (sentences.of_strongest, STRONGEST, having(STRONGEST, contributions=(-3.0, -2.0, -1.0))),
    "recurs": (sentences.of_recurrence, recurring(0.05), recurring(0.06)),
    "recurs.none": (sentences.of_recurrence, recurring(0.06), recurring(0.05)),
    "recurs.nothing": (sentences.of_recurrence, having(CASES, harmful=0), CASES),
    "losses.undefined": (sentences.of_losses, UNDEFINED, LOSSES),
    "losses.spearman": (sentences.of_losses, LOSSES, UNDEFINED),
    "losses.overlap": (sentences.of_losses, LOSSES, having(LOSSES, same={10: 10})),
    "losses.all_same": (sentences.of_losses, having(LOSSES, same={10: 10}), LOSSES),
    "lists": (sentences.of_lists, [LISTED], []),
    "lists.none": (sentences.of_lists, [], [LISTED]),
    "lists.empty": (sentences.of_lists, [having(LISTED, entries=0, removed=0)], [LISTED]),
    "lists.newest": (sentences.of_lists, [LISTED], [having(LISTED, problem="damaged")]),
    "lists.halved": (sentences.of_lists, [LISTED], [having(LISTED, halved=0)]),
    "trainings.unknown": (sentences.of_trainings, having(TRAININGS, recorded=False), TRAININGS),
    "trainings.left_out": (sentences.of_trainings, having(TRAININGS, left_out=(0, 1)), TRAININGS),
    "trainings.strange": (sentences.of_trainings, having(TRAININGS, strange=("x",)), TRAININGS),
    "trainings.none": (sentences.of_trainings, having(TRAININGS, after=()), TRAININGS),
    "retrained.higher": (sentences.of_retrained, BETTER, SAME),
    "retrained.lower": (sentences.of_retrained, WORSE, BETTER),
    "retrained.same": (sentences.of_retrained, SAME, WORSE),
    "retrained.settings": (sentences.of_retrained, RETRAINED, having(RETRAINED, differing=())),
}  # fmt: skip
ALWAYS = {
    "signs",
    "losses",
    "retrained",
    "retrained.no_evidence",
}  # definitions, counts and cautions, whose numbers are tested below


@pytest.mark.parametrize("key", CLAIMS)
def test_a_sentence_is_said_where_it_is_true_and_nowhere_else(key: str) -> None:
    told, true, false = CLAIMS[key]
    assert key in {one.key for one in told(true)}
    assert key not in {one.key for one in told(false)}


@pytest.mark.parametrize("key", CLAIMS)
@pytest.mark.parametrize("noun", ["pair", "sample"])
@pytest.mark.parametrize("language", LANGUAGES)
def test_a_sentence_takes_the_values_that_its_text_asks_for(key: str, noun: str, language: str) -> None:
    told, true, _ = CLAIMS[key]
    one = next(one for one in told(true) if one.key == key)
    assert Words(language, noun)(key, **one.values)
    assert placeholders(catalogue(language)[key]) == set(one.values)


def test_every_sentence_of_the_code_is_among_the_claims() -> None:
    """Also those whose key is put together: each pattern has its cases above."""
    found = set()
    for call in ast.walk(ast.parse(Path(str(sentences.__file__)).read_text(encoding="utf-8"))):
        if isinstance(call, ast.Call) and ast.unparse(call.func) in ("say", "Sentence"):
            parts = call.args[0].values if isinstance(call.args[0], ast.JoinedStr) else [call.args[0]]
            found.add("".join(re.escape(part.value) if isinstance(part, ast.Constant) else r"[a-z_]+" for part in parts))
    found.discard("[a-z_]+")  # `say` itself
    assert len(found) > 30
    known = {*CLAIMS, *ALWAYS}
    assert {pattern for pattern in found if not any(re.fullmatch(pattern, key) for key in known)} == set()
    assert {key for key in known if not any(re.fullmatch(pattern, key) for pattern in found)} == set()
    assert known <= set(catalogue("en"))


# ---- the numbers, by plain loops over every influence ---------------------------------------------------------------------------------


def whole_numbers(seed: int) -> ImportedView:
    """Scores that are small whole numbers, many of them 0, and two dead tests."""
    view, draw = computed(seed), np.random.default_rng(seed)
    influence = draw.integers(-3, 4, size=(len(view.train_pairs), len(view.test_pairs))).astype(float)
    influence[:, :2] = 0.0
    own = draw.integers(0, 9, size=len(view.train_pairs)).astype(float)
    sides = (ImportedPairs(view.train_pairs, view.train_samples), ImportedPairs(view.test_pairs, view.test_samples))
    return ImportedView(*sides, ImportedScores(own, influence))


@pytest.mark.parametrize("kind", ["margin", "logistic", "whole numbers", "others"])
def test_the_facts_are_those_of_plain_loops(ranking: Run, kind: Any) -> None:
    view = whole_numbers(len(kind)) if " " in kind or kind == "others" else ranking.view(loss=kind, margin=0.02)  # few are alive
    own, table, tests = view.self_influence(), view.influence(), view.test_pairs
    live = [column for column in range(len(tests)) if not view.dead_tests[column]]
    mean = np.array([sum(float(table[row, column]) for column in live) / len(live) for row in range(len(own))])
    found = facts.cases(view, own, mean)

    helps, harms = (sum(1 for value in mean if sign * value > 0) for sign in (1, -1))
    assert facts.signs(mean) == Signs(helps, harms, len(mean) - helps - harms)
    ordered = sorted(own.tolist())
    spread = facts.spread(own)
    assert spread.zeros == ordered.count(0.0)
    assert spread.top_share == pytest.approx(sum(ordered[-spread.top :]) / sum(ordered))
    assert spread.low <= spread.median <= spread.high
    strongest = found.strongest
    assert strongest is not None
    row, column = view.train_row(strongest.notable.example["id"]), view.test_row(strongest.test["id"])
    assert strongest.value == table[row, column] == min(float(table[row, column]) for row in range(len(own)) for column in live)
    assert strongest.notable.harms == sum(1 for column in live if table[row, column] < 0)
    assert (strongest.notable.own, strongest.notable.mean, strongest.notable.live) == (own[row], mean[row], len(live))
    assert sum(strongest.contributions) == pytest.approx(strongest.value if strongest.contributions else 0.0)
    high = [row for row in range(len(own)) if own[row] >= np.quantile(own, 0.95) and own[row] > 0]
    both = [row for row in high if mean[row] < 0]
    assert found.high == len(high)
    if both:
        assert found.hard_and_harmful is not None
        assert found.hard_and_harmful.mean == min(mean[row] for row in both)
    else:
        assert found.hard_and_harmful is None

    chosen = view.train_pairs[most_harmful(mean, 7)]
    times = Counter([*chosen["id1"], *chosen["id2"]])
    assert found.harmful == len(chosen) == 7
    assert dict(zip(found.recurring.table["group"], found.recurring.table["chosen"], strict=True)) == {
        sample: times[sample] for sample in view.train_samples["id"]
    }
    of_gap = facts.by_gap(view, {"self_influence": own})
    for _, row in of_gap.iterrows():
        own_of = [own[place] for place, gap in enumerate(view.train_pairs["gap"]) if gap == row["group"]]
        assert (int(row["n"]), row["self_influence"]) == (len(own_of), pytest.approx(sum(own_of) / len(own_of)))


def test_two_losses_share_what_sorting_says_they_share(ranking: Run) -> None:
    view = ranking.view()
    found = facts.losses(ranking, view, tops=(5, 10_000))
    other = ranking.view(loss="ghm")
    first = [set(np.argsort(-one.self_influence(), kind="stable")[:5].tolist()) for one in (view, other)]
    assert found.same == {5: len(first[0] & first[1])}  # of 10,000 there are none
    assert found.ghm.startswith("ghm")
    assert found.other.startswith("margin")


# ---- lists and trainings ------------------------------------------------------------------------------------------------------------


def test_before_and_after_is_linked_by_name_and_line(place: Workspace, ranking: Run) -> None:
    """A list that was written, a training that left out what it lists, and one that only bears its name."""
    from tracin_core.data.readers import list_recordings, read_inputs
    from tracin_core.data.samples import split_samples
    from tracin_core.engine.training import train_ranker

    view = ranking.view()
    assert decisions.lists(place, ranking, view) == []
    chosen = view.exclusions(-0.001, 1, 3)
    file, sidecar = place.export_exclusions(
        ranking, chosen, {"threshold": -0.001, "pair_mode": "ranking_pair"}, who="Ada", why="<b>noise</b>"
    )
    known = decisions.lists(place, ranking, view)
    assert (known[0].entries, known[0].removed, known[0].who) == (3, 3, "Ada")
    assert decisions.trainings(place, ranking, known).after == ()

    recordings = ranking.recipe.data.place
    samples = split_samples(list_recordings(recordings, lab.MATERIAL, lab.FREQUENCY), lab.SPLIT)
    pairs = {frozenset(ends) for ends in chosen[["id1", "id2"]].itertuples(index=False)}
    cases: list[tuple[str, list[str], dict[str, Any]]] = [
        ("after", chosen["id"].tolist(), {}),
        ("other", chosen["id"].tolist()[:1], {}),
        ("weighed", chosen["id"].tolist(), {"weighted_by": "mean_loss", "weighting_run": ranking.id, "weighted": 4}),
    ]
    for folder, lines, weighed in cases:
        listed = {"file": file.name, "matched": lines, "elsewhere": [], "unmatched": [], **weighed}
        train_ranker(
            read_inputs(recordings, samples), samples, place.root / "trainings" / folder, exclude_pairs=pairs, exclusion_list=listed,
            epochs=3, save_epochs=(1, 2, 3),
        )  # fmt: skip
    found = decisions.trainings(place, ranking, known)
    assert found.strange == ("other",)
    after, weighed_too = found.after
    assert (after.folder, after.pairs, after.samples, after.differing) == ("after", 3, 0, ())
    assert (weighed_too.folder, weighed_too.differing) == ("weighed", ("weighted", "weighted_by", "weighting_run"))
    for folder, side in ((ranking.recipe.checkpoints.folder, "before"), (place.root / "trainings" / "after", "after")):
        told = json.loads((folder / "training.json").read_text(encoding="utf-8"))["history"][-1]
        assert after.measured.set_index("measure")[side].to_dict() == {name: told[name] for name in after.measured["measure"]}
    told = report.report_markdown(ranking, place=place)
    assert file.name.replace("_", r"\_") in told
    assert catalogue("en")["retrained.no_evidence"] in told

    sidecar.write_text("{", encoding="utf-8")
    assert "cannot be read" in decisions.lists(place, ranking, view)[0].problem
    assert "not known: it cannot be read" in report.report_markdown(ranking, place=place)


@pytest.mark.parametrize("again", [True, False])
def test_what_the_run_itself_left_out_is_no_other_list(place: Workspace, ranking: Run, again: bool) -> None:
    """A training without it and the list is compared; one that learnt it again differs in that besides."""
    from tracin_core.records.trainings import own_training as known

    before = known(ranking)
    assert before is not None
    one, two, three = ranking.train_pairs["id"].tolist()[:3]
    ends = ranking.train_pairs[["id1", "id2"]].iloc[0].tolist()
    told = {**before, "exclusions": {"file": None, "matched": ["_".join(ends[::-1])], "samples": 0, "pairs": 1}}
    file = Path(ranking.recipe.checkpoints.folder) / "training.json"
    kept = file.read_text(encoding="utf-8")
    folder = place.root / "trainings" / f"again_{again}"
    folder.mkdir()
    lines = [*([one] if again else []), two, three]
    after = {**before, "exclusions": {"file": "mine.txt", "matched": lines, "samples": 0, "pairs": len(lines)}}
    (folder / "training.json").write_text(json.dumps(after), encoding="utf-8")
    file.write_text(json.dumps(told), encoding="utf-8")
    try:
        found = decisions.trainings(place, ranking, [decisions.Listed("mine.txt", 0.0, "", "", 2, (two, three))])
    finally:
        file.write_text(kept, encoding="utf-8")
        (folder / "training.json").unlink()
    (compared,) = found.after
    assert (compared.pairs, compared.differing) == (len(lines), () if again else ("left_out_before",))


def test_a_training_record_of_other_checkpoints_is_not_this_runs(place: Workspace, classes: Run) -> None:
    assert own_training(classes) is not None
    file = Path(classes.recipe.checkpoints.folder) / "training.json"
    kept = file.read_text(encoding="utf-8")
    told = json.loads(kept)
    told["history"][-1]["validation_loss"] += 1.0
    file.write_text(json.dumps(told), encoding="utf-8")
    try:
        assert own_training(classes) is None
        assert catalogue("en")["trainings.unknown"] in report.report_markdown(classes, place=place)
    finally:
        file.write_text(kept, encoding="utf-8")


# ---- the document -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("name", ["ranking", "classes"])
def test_every_section_is_told_in_both_forms(
    pages: Callable[..., str], name: str, language: str, place: Workspace, request: pytest.FixtureRequest
) -> None:
    run = request.getfixturevalue(name)
    told = document(run, language, place)
    assert [section.key for section in told.sections] == list(SECTIONS)
    page, text = pages(run, language), as_markdown(told)
    assert f'<html lang="{language}">' in page
    for section in told.sections:
        assert section.blocks, section.key
        assert f'<h2 id="{section.key}">{section.title}</h2>' in page
        assert f"## {section.title}" in text
        assert Words(language, run.noun)("refused", reason="")[:12] not in str(section.blocks)


def test_simulated_is_on_the_title_and_on_every_figure_or_nowhere(pages: Callable[..., str], ranking: Run, classes: Run) -> None:
    for run, simulated in ((ranking, True), (classes, False)):
        page = pages(run)
        figures = payloads(page)
        captions = re.findall(r"<figcaption>(.*?)</figcaption>", page, re.DOTALL)
        assert figures
        assert len(captions) >= len(figures)
        assert {figure["layout"].get("title", {}).get("text") for figure in figures} == {"SIMULATED" if simulated else None}
        assert {"SIMULATED" in caption for caption in captions} == {simulated}
        assert ("SIMULATED" in page.partition("</h1>")[0].partition("<h1>")[2]) == simulated
        assert report.file_name(run, ".html").startswith("SIMULATED_") == simulated
        text = report.report_markdown(run)
        assert text.startswith("# **SIMULATED** ") == simulated


def payloads(page: str) -> list[dict[str, Any]]:
    """The figures that stand in a page."""
    (line,) = re.findall(r"^const figures = (\[.*\]);$", page, re.MULTILINE)
    return list(json.loads(line))


def test_names_from_the_data_are_text_everywhere(pages: Callable[..., str], ranking: Run, classes: Run) -> None:
    for run in (ranking, classes):
        page, text = pages(run), report.report_markdown(run)
        for markup in (HOSTILE, LINK):
            assert markup not in page
            assert markup not in re.sub(r"^```$.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    labels = {str(label) for figure in payloads(pages(classes)) for trace in figure["data"] for label in trace.get("x", [])}
    assert "&lt;script&gt;window.pwned = 1&lt;/script&gt;" in labels


@pytest.mark.parametrize(
    "text", ["a | b", "*x*", "`c`", "<i>", "# h", "- item", "1. one", "a\n\n# b", "![x](y)", "&lt;", "~~s~~", "$x$", "+ x"]
)
def test_markdown_says_a_name_as_it_is(text: str) -> None:
    """No character that Markdown or HTML would act on is left bare."""
    said = plain(text)
    bare = re.sub(r"\\.", "", said)
    assert not re.search(r"[*`<>|#~$\[\]!_]", bare)
    assert not re.match(r"(\d+[.)]|[-+=])\s", said)
    assert "\n" not in said
    assert plain("-0.5") == "-0.5"


def test_without_a_workspace_a_report_says_that_nobody_looked(classes: Run) -> None:
    assert report.report_markdown(classes).count(catalogue("en")["lists.not_looked"]) == 2


@pytest.mark.parametrize("held", [("self_influence", "influence"), ("self_influence",), ("influence",)])
def test_an_imported_run_is_told_by_what_its_files_hold(held: tuple[str, ...], tmp_path: Path) -> None:
    """Of gradients and checkpoints, which score files do not know, nothing is said; what they lack is."""
    place = open_workspace(tmp_path / "workspace")
    files = files_of(tmp_path)
    run = import_scores(place, **{f"{part}_file": files[f"{part}_file"] for part in held})
    for language in LANGUAGES:
        told = document(run, language, place)
        words = Words(language, "pair", imported=True)
        text = as_markdown(told)
        assert as_html(told)
        assert told.warning == ""
        for part in ("self_influence", "influence"):
            assert (words(f"lacks.{part}") in text) == (part not in held)
        refused = {section.key for section in told.sections if words("refused", reason="") in str(section.blocks)}
        assert refused == {"losses"}
    assert "gradient" not in report.report_markdown(run, place=place)


def test_what_imported_numbers_are_not_is_said_before_any_of_them(tmp_path: Path) -> None:
    place = open_workspace(tmp_path / "workspace")
    files = files_of(tmp_path)
    records = json.loads(files["self_influence_file"].read_text())
    for (pair, record), value in zip(records.items(), per_batch(computed().self_influence()), strict=True):
        records[pair] = {**record, "tracin_self_influence": value}
    files["self_influence_file"].write_text(json.dumps(records))
    run = import_scores(place, **files)
    assert run.verdict
    for told in (report.report_html(run, place=place), report.report_markdown(run, place=place)):
        warned = told.index("These numbers are not per-pair influences.")
        assert warned < told.index("Settings</h2>" if "<html" in told else "## Settings")
        assert "shared with another pair" in told[warned : warned + 500]


def test_a_large_run_stays_small(pages: Callable[..., str], large: Run) -> None:
    """Bins and the first few pairs, never a number per pair."""
    page = pages(large)
    assert len(page.encode()) < 8 * MEGABYTE
    assert len(json.dumps(payloads(page))) < MEGABYTE / 4
    assert len(set(re.findall(r"point_\d{4}", page))) < 200


@pytest.mark.parametrize(("name", "start"), [("r.html", "<!DOCTYPE html>"), ("R.HTML", "<!DOCTYPE html>"), ("r.md", "# ")])
def test_the_ending_says_the_form(tmp_path: Path, classes: Run, name: str, start: str) -> None:
    path = report.write_report(classes, tmp_path / "new" / name)
    assert path.read_text(encoding="utf-8").startswith(start)


def test_what_cannot_be_written_says_why(tmp_path: Path, classes: Run) -> None:
    with pytest.raises(InputError, match=r"written as \.html or \.md, not as 'r\.pdf'"):
        report.write_report(classes, tmp_path / "r.pdf")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot be written \(.+\); choose a folder"):
        report.write_report(classes, tmp_path / "file" / "r.md")
    with pytest.raises(ViewError, match="no report in 'fr'"):
        report.write_report(classes, tmp_path / "r.md", language="fr")


# ---- in a browser -------------------------------------------------------------------------------------------------------------------


@pytest.mark.browser
@pytest.mark.parametrize(("name", "language", "scheme"), [("ranking", "en", "light"), ("classes", "zh-TW", "dark")])
def test_a_report_opens_from_a_disk_and_asks_nobody(
    page: Page, pages: Callable[..., str], tmp_path: Path, request: pytest.FixtureRequest, name: str, language: str, scheme: Any
) -> None:
    file = tmp_path / "report.html"
    file.write_text(pages(request.getfixturevalue(name), language), encoding="utf-8")
    asked: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda failure: complaints.append(str(failure)))
    page.emulate_media(color_scheme=scheme)
    page.goto(file.as_uri())
    figures = payloads(file.read_text(encoding="utf-8"))
    expect(page.locator(".chart .main-svg .xtick").first).to_be_visible()
    assert page.locator(".chart:has(.main-svg)").count() == len(figures) >= 3
    assert [url for url in asked if not url.startswith(("file://", "data:"))] == []
    assert complaints == []
    assert page.evaluate("window.pwned") is None
    assert page.locator("main a, .chart a, svg a").count() == 0
    assert page.locator("img:not([alt]), img[alt=''], .chart:not([aria-label])").count() == 0
    assert page.evaluate("Array.from(document.images).every((image) => image.complete && image.naturalWidth > 0)")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    ink, ground = (
        page.locator("body").evaluate(f"(body) => getComputedStyle(body).{name}") for name in ("color", "backgroundColor")
    )
    told = page.locator(".chart .xtick text").first.evaluate("(text) => getComputedStyle(text).fill")
    assert told == ink
    assert (brightness(ground) < brightness(ink)) == (scheme == "dark")
    if name == "classes":
        expect(page.locator(".chart .xtick", has_text=HOSTILE).first).to_be_visible()


def brightness(colour: str) -> int:
    return sum(int(part) for part in re.findall(r"\d+", colour)[:3])


@pytest.mark.browser
def test_the_button_on_findings_gives_the_same_report(
    page: Page, serve: Callable[..., Any], place: Workspace, classes: Run, tmp_path: Path
) -> None:
    server = serve(place.root)
    visit(page, f"{server.url}/findings?run={classes.id}")
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Markdown").click()
    assert waiting.value.suggested_filename == report.file_name(classes, ".md")
    waiting.value.save_as(tmp_path / "got.md")
    assert (tmp_path / "got.md").read_text(encoding="utf-8") == report.report_markdown(classes, place=open_workspace(place.root))


@pytest.mark.parametrize("write", [report_html, report_markdown])
def test_a_report_names_no_place_on_this_machine(place: Workspace, ranking: Run, write: Callable[..., str]) -> None:
    """It is sent to people elsewhere: the recipe is in it, with folders by their names alone."""
    text = write(ranking, "en", place=place)
    assert "[checkpoints]" in text
    assert ranking.recipe.checkpoints.folder.name in text
    assert str(place.root) not in text
