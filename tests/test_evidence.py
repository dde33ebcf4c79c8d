"""What was measured of a rule goes with its lists, and harm is exported with a reason only: in the workspace, in the shell, on the page."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from lab import Studio
from test_calibration import CHANCE, GOOD, keep
from test_calibration import finished as calibrated
from test_pages import viewer
from test_retraining_lists import finished as retrained
from typer.testing import CliRunner

from pages.shared.i18n import LANGUAGES, texts
from tracin_core import cli
from tracin_core.data.files import read_json, write_json
from tracin_core.errors import ExclusionError
from tracin_core.records.calibrations import subject_of, subjects_of
from tracin_core.records.evidence import Evidence, _of_retraining, evidence

RULE = {"threshold": -0.01, "min_occurrences": 1, "max_exclusions": 6, "pair_mode": "ranking_pair"}
ARMS = {"none": [0.8] * 3, "reverse": [0.7] * 3, "random_1": [0.8, 0.81, 0.8], "random_2": [0.8, 0.81, 0.79]}
LISTED = {"helps": [0.91, 0.92, 0.90], "harms": [0.71, 0.72, 0.70], "unproven": [0.81, 0.70, 0.93]}
WRONG_WAY = [(0.30, 0.05), (0.31, 0.05), (0.29, 0.05)]


@pytest.fixture
def measured(studio: Studio) -> Iterator[Callable[..., None]]:
    """`measured("harms")`: a finished retraining of such a list, as the worker leaves it, for the time of the test."""
    files: list[Path] = []

    def measured_(verdict: str, digest: str = studio.run.digest) -> None:
        found = retrained({**ARMS, "list": LISTED[verdict]}, "accuracy")
        told = {**{name: value for name, value in vars(found).items() if name != "run_id"}, "run": studio.run.id}
        told |= {"rule": RULE, "table": found.table.to_dict("records"), "digest": digest}
        files.append(studio.place.root / "evaluations" / f"e{len(files)}" / "result.json")
        write_json(files[-1], told)

    yield measured_
    for file in files:
        file.unlink()


def test_nothing_measured_is_no_evidence(studio: Studio) -> None:
    assert evidence(studio.place, studio.run, RULE) == []


@pytest.mark.parametrize("verdict", LISTED)
def test_a_retraining_speaks_of_lists_of_its_kind(studio: Studio, measured: Callable[..., None], verdict: str) -> None:
    measured(verdict)
    (found,) = evidence(studio.place, studio.run, {**RULE, "threshold": -0.5, "min_occurrences": 2})
    assert (found.kind, found.verdict, found.score) == ("retraining", verdict, "worst_influence")
    assert evidence(studio.place, studio.run, {**RULE, "pair_mode": "sample"}) == []
    assert evidence(studio.place, studio.run, {"rule": "suspect", "score": "mean_loss", "pair_mode": "ranking_pair"}) == []
    assert (found.found.low > 0, found.found.high < 0) == (verdict == "helps", verdict == "harms")


def test_the_interval_told_is_the_one_that_the_verdict_rests_on(studio: Studio) -> None:
    """Equal epochs help, equal steps prove nothing: unproven, with the interval of equal steps."""
    both = retrained({**ARMS, "list": LISTED["helps"]}, "accuracy")
    steps = retrained({**ARMS, "list": LISTED["unproven"]}, "accuracy").table.assign(lasting="steps")
    both = replace(both, table=pd.concat([both.table, steps[steps["arm"] != "none"]]))
    found = _of_retraining(both)
    assert (found.verdict, found.about) == ("unproven", "steps")
    assert found.found == both.effect("list", "random", "steps").difference
    assert found.found.low < 0 < found.found.high


def test_a_retraining_of_other_scores_says_nothing(studio: Studio, measured: Callable[..., None]) -> None:
    measured("harms", digest="another")
    assert evidence(studio.place, studio.run, RULE) == []


def test_pairs_are_judged_by_pairs_turned_round_where_that_was_planted(studio: Studio) -> None:
    subject = subject_of(studio.run)
    told = [
        calibrated({"worst_influence": WRONG_WAY, "random": CHANCE}, subject=subject, created=9e9),
        calibrated(
            {"worst_influence": GOOD, "random": CHANCE}, subject=subject, created=1.0, unit="pair", noise="pair_flips", number="p"
        ),
    ]
    files = [keep(studio.place, one) for one in told]
    try:
        assert [one.verdict for one in evidence(studio.place, studio.run, RULE)] == ["helps"]
        assert [one.verdict for one in evidence(studio.place, studio.run, {**RULE, "pair_mode": "sample"})] == ["harms"]
    finally:
        for file in files:
            file.unlink()


@pytest.mark.parametrize("version", ["now", "before"])
@pytest.mark.parametrize(("figures", "verdict"), [(GOOD, "helps"), (CHANCE, "unproven"), (WRONG_WAY, "harms")])
def test_a_calibration_speaks_of_the_score(studio: Studio, figures: list[tuple[float, float]], verdict: str, version: str) -> None:
    """Also one of an earlier version, whose subject named the task as the recipe wrote it."""
    now = subject_of(studio.run)
    (earlier,) = subjects_of(studio.run) - {now}
    told = {"now": now, "before": earlier}
    file = keep(studio.place, calibrated({"worst_influence": figures, "random": CHANCE}, subject=told[version], created=9e9))
    try:
        assert [(one.kind, one.verdict) for one in evidence(studio.place, studio.run, RULE)] == [("calibration", verdict)]
        suspect = {"rule": "suspect", "score": "mean_loss", "pair_mode": "ranking_pair"}
        assert evidence(studio.place, studio.run, suspect) == []
    finally:
        file.unlink()


def test_an_auroc_is_told_between_0_and_1(studio: Studio) -> None:
    wide = [(0.95, 0.1), (0.05, 0.1), (0.5, 0.1)]
    file = keep(studio.place, calibrated({"worst_influence": wide, "random": CHANCE}, subject=subject_of(studio.run), created=9e9))
    try:
        (found,) = evidence(studio.place, studio.run, RULE)
        assert (found.verdict, found.found.low, found.found.high) == ("unproven", 0.0, 1.0)
    finally:
        file.unlink()


def test_harm_goes_out_with_a_reason_that_stays_with_the_list(studio: Studio, measured: Callable[..., None]) -> None:
    chosen = studio.run.view().exclusions(**RULE)
    measured("harms")
    before = len(studio.place.exported_exclusions(studio.run))
    for why in ("", "  "):
        with pytest.raises(ExclusionError, match=r"left out at random .* say why"):
            studio.place.export_exclusions(studio.run, chosen, RULE, why=why)
    assert len(studio.place.exported_exclusions(studio.run)) == before
    _, beside = studio.place.export_exclusions(studio.run, chosen, RULE, why="to show the reviewers")
    told = read_json(beside)
    assert told["why"] == "to show the reviewers"
    assert [one["verdict"] for one in told["evidence"]] == ["harms"]
    assert Evidence.to_dict(evidence(studio.place, studio.run, RULE)[0]) == told["evidence"][0]


def test_the_shell_asks_for_a_reason(studio: Studio, measured: Callable[..., None], tmp_path: Path) -> None:
    words = ["generate-exclusions", "--workspace", str(studio.place.root), "--run", studio.run.id, "--threshold", "-0.01"]
    words += ["--min-occurrences", "1", "--output-file", str(tmp_path / "list.txt")]
    measured("harms")
    refused = CliRunner().invoke(cli.app, words)
    assert (refused.exit_code, (tmp_path / "list.txt").exists()) == (1, False)
    assert CliRunner().invoke(cli.app, [*words, "--why", "to show the reviewers"]).exit_code == 0
    assert json.loads((tmp_path / "list.provenance.json").read_text(encoding="utf-8"))["why"] == "to show the reviewers"


def test_a_list_that_the_limit_cuts_says_how_many_meet_the_rule(studio: Studio, tmp_path: Path) -> None:
    words = ["generate-exclusions", "--workspace", str(studio.place.root), "--run", studio.run.id, "--threshold", "-0.01"]
    words += ["--min-occurrences", "1", "--output-file", str(tmp_path / "list.txt"), "--max-exclusions"]
    count = len(studio.run.view().exclusions(**{**RULE, "max_exclusions": None}))
    assert count > 1
    cut = CliRunner().invoke(cli.app, [*words, "1"])
    assert f"{count} meet the rule; the list has the first 1 of them" in cut.stdout
    whole = CliRunner().invoke(cli.app, [*words, str(count)])
    assert (whole.exit_code, "meet the rule" in whole.stdout) == (0, False)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("verdict", LISTED)
def test_the_page_says_what_was_measured(
    studio: Studio, measured: Callable[..., None], monkeypatch: pytest.MonkeyPatch, verdict: str, language: str
) -> None:
    measured(verdict)
    test = viewer(studio.place.root, monkeypatch)("threshold", lang=language, run=studio.run.id, m=1, T=-0.01)
    told = texts(language)[f"evidence.retraining.{verdict}"].partition("{")[0]
    shown = {"helps": test.success, "unproven": test.info, "harms": test.error}[verdict]
    assert [told in box.value for box in shown].count(True) == 1
    assert test.button(key="write_list").disabled == (verdict == "harms")
    test.text_input(key="why").set_value("to show the reviewers").run()
    assert not test.button(key="write_list").disabled
