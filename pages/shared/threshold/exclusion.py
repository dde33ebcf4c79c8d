"""Pieces of the threshold page: the rule, its line, the list that follows and what it would cost."""

from dataclasses import dataclass
from typing import Any, Final, Literal, cast, get_args

import numpy as np
import pandas as pd
import streamlit as st

from pages.shared import examples, session, widgets
from pages.shared.i18n import t
from pages.shared.session import plain
from pages.shared.threshold import dragging
from tracin_core import charts
from tracin_core.records.runs import Run
from tracin_core.records.verdicts import Overruled, overruled, subject
from tracin_core.records.verdicts import decided as after_people
from tracin_core.scores.exclusions import PairMode
from tracin_core.scores.levels import Levels, cells_of, fewer_cells, harm_levels, most_occurrences, robust_line, suspect_levels
from tracin_core.scores.selection import SuspectScore
from tracin_core.scores.view import View

Kind = Literal["harm", "suspect"]
MODES: Final[tuple[PairMode, ...]] = get_args(PairMode)
WAYS: Final = ("score", "quantile", "robust_z")
TIMES: Final = 3  # minimum occurrences, of the command line and to begin with
USUAL: Final = -5.0  # the command line's threshold
MUCH: Final = 0.25  # of the training pairs; removing more deserves a warning
WHOLE: Final = 0.1  # a share is told in whole percent from here on, or it is too long for its card
HALF: Final = 0.5  # of an angle pair
SUSPECTED: Final = 0.98  # the quantile that a review list begins with


@dataclass(frozen=True)
class Rule:
    """What decides, without the threshold."""

    kind: Kind
    mode: PairMode
    occurrences: int = 1
    most: int | None = None
    score: SuspectScore = "self_influence"

    @property
    def lists_pairs(self) -> bool:
        return self.mode == "ranking_pair"

    @property
    def line_key(self) -> str:
        """Where the address has its threshold."""
        return "T" if self.kind == "harm" else "S"


@dataclass(frozen=True)
class Line:
    """A rule with its threshold, and how that was given where not as a score."""

    rule: Rule
    threshold: float
    given: dict[str, float]

    def settings(self) -> dict[str, Any]:
        """The rule in plain values, as it is written beside the list."""
        rule = self.rule
        if rule.kind == "harm":
            own = {"min_occurrences": rule.occurrences, "max_exclusions": rule.most, "pair_mode": rule.mode}
            return {"threshold": self.threshold, **own, **self.given}
        return {"rule": "suspect", "score": rule.score, "threshold": self.threshold, "pair_mode": rule.mode, **self.given}


def levels_of(view: View, rule: Rule) -> Levels:
    """Where everything stands to the rule's line."""
    if rule.kind == "suspect":
        return session.prepared(view, ("suspect", rule.score), lambda: suspect_levels(view, rule.score))
    return session.prepared(view, ("harm", rule.occurrences, rule.mode), lambda: harm_levels(view, rule.occurrences, rule.mode))


# ---- the rule -------------------------------------------------------------------------------------------------------------------


def choose_rule(view: View) -> Rule:
    """Harm or suspect, and the settings of it, each tied to the address."""
    tests, of_pairs = len(view.test_pairs), view.train.noun == "pair"
    with st.container(horizontal=True, gap="medium"):
        kind = widgets.choose_code("rule", ("harm", "suspect"), key="rule")
        if kind == "suspect":
            score = widgets.choose_code("suspect", get_args(SuspectScore), key="suspect")
            rule = Rule("suspect", "ranking_pair" if of_pairs else "sample", score=cast(SuspectScore, score))
        else:
            mode = cast(PairMode, widgets.choose_code("mode", MODES, key="mode") if of_pairs else "sample")
            occurrences = session.linked("m", min(TIMES, tests), valid=range(1, tests + 1))
            st.number_input(t("threshold.occurrences"), 1, tests, help=t("threshold.occurrences.help"), width=165, **occurrences)
            most = session.linked("most", 50, valid=lambda count: count >= 0)
            st.number_input(t("threshold.most"), 0, help=t("threshold.most.help"), width=165, **most)
            rule = Rule("harm", mode, int(st.session_state["m"]), int(st.session_state["most"]) or None)
    st.markdown(f":small[{t(f'mode.{rule.mode}.help') if rule.kind == 'harm' else t('rule.suspect.help')}]")
    return rule


def has_line(view: View, rule: Rule) -> bool:
    """Whether some threshold would choose anything; if none would, the reason and the cure are on the screen."""
    levels = levels_of(view, rule)
    if rule.kind == "suspect":
        if not levels.listed[np.isfinite(levels.listed)].any():
            widgets.nothing_matches(t("threshold.all_zero"))
            return False
        return True
    if (levels.counted < 0).any():
        return True
    tests = len(view.test_pairs)
    widgets.nothing_matches(t("threshold.nothing", occurrences=rule.occurrences, tests=tests))
    best = session.prepared(view, ("most", rule.mode), lambda: most_occurrences(view, rule.mode, tests))
    if best:
        label = t("threshold.nothing.cure", best=best, tests=tests, occurrences=rule.occurrences)
        st.button(label, key="lower", icon=":material/healing:", on_click=session.choose, args=("m", best))
    else:
        st.markdown(t("threshold.nothing.at_all", dead=int(view.dead_tests.sum()), tests=tests))
    return False


# ---- the line -------------------------------------------------------------------------------------------------------------------


def choose_line(view: View, rule: Rule) -> Line:
    """The threshold: as a score, or relative to the scores' own scale; exact entry for what dragging does by eye."""
    suggested = suggested_line(view, rule)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        way = widgets.choose_code("by", WAYS, key="given")
        if way == "score":
            line = Line(rule, choose_threshold(rule.line_key, suggested, at_most=0.0 if rule.kind == "harm" else None), {})
        else:
            line = relative_line(view, rule, way)
    if way != "score":
        told = session.prepared(view, ("population", rule.kind, rule.mode, rule.score), lambda: population_in_words(view, rule))
        st.markdown(f":small[{t('threshold.stands', value=charts.short(line.threshold))} {told}]")
    return line


def suggested_line(view: View, rule: Rule) -> float:
    """Where to begin on this run's own scale; nothing is applied by it."""
    if rule.kind == "harm":
        return view.suggested_threshold(rule.occurrences, rule.mode)
    counted = levels_of(view, rule).counted
    return float(f"{np.quantile(counted[np.isfinite(counted)], SUSPECTED):.3g}")


def choose_threshold(key: str, suggested: float, *, at_most: float | None) -> float:
    """The exact threshold: the suggested one until another is set, also when the rule and with it the suggestion changes."""
    before = f"suggested.{key}"
    if before in st.session_state and st.session_state.get(key) == st.session_state[before] != suggested:
        session.choose(key, suggested)
    st.session_state[before] = suggested
    picker = session.linked(key, suggested, valid=lambda value: at_most is None or value <= at_most)
    told = "threshold.value.help" if key == "T" else "threshold.suspect.help"
    st.number_input(t("threshold.value"), max_value=at_most, format="%.6g", width=220, help=t(told), **picker)
    st.button(
        t("threshold.suggested", value=f"{suggested:g}"),
        icon=":material/auto_fix_high:",
        help=t("threshold.suggested.help" if key == "T" else "threshold.suggested.suspect.help"),
        on_click=session.choose,
        args=(key, suggested),
    )
    return float(st.session_state[key])


def relative_line(view: View, rule: Rule, way: str) -> Line:
    """The threshold at a quantile (in percent), or at a robust z-score."""
    harm = rule.kind == "harm"
    if way == "quantile":
        picker = session.linked("q" if harm else "Sq", 2.0 if harm else 98.0, valid=lambda share: 0 <= share <= 100)
        share = st.number_input(t("threshold.quantile"), 0.0, 100.0, step=0.5, format="%.4g", width=190, **picker) / 100
        return Line(rule, relative_threshold(view, rule, quantile=share), {"quantile": share})
    picker = session.linked("z" if harm else "Sz", -3.0 if harm else 3.0)
    z = st.number_input(t("threshold.robust_z"), step=0.25, format="%.4g", width=190, **picker)
    return Line(rule, relative_threshold(view, rule, robust_z=z), {"robust_z": z})


def relative_threshold(view: View, rule: Rule, **given: float) -> float:
    """The score at which the rule's line stands."""
    what = ("relative", rule.kind, rule.mode, rule.score, tuple(given.items()))
    if rule.kind == "harm":
        return session.prepared(view, what, lambda: view.threshold_at(**given, pair_mode=rule.mode)[0])
    values = levels_of(view, rule).counted
    return float(np.quantile(values, given["quantile"])) if "quantile" in given else robust_line(values, given["robust_z"])


def population_in_words(view: View, rule: Rule) -> str:
    """Over which scores a relative threshold is taken."""
    if rule.kind == "suspect":
        return t("threshold.population.suspect", n=len(levels_of(view, rule).counted))
    found = view.threshold_at(quantile=0.5, pair_mode=rule.mode)[1]
    share = f"{found.share:.1%}"
    return t("threshold.population", n=len(found.values), share=share, live=found.live_tests, tests=found.tests)


def drag(view: View, line: Line) -> None:
    """The histogram with the line in it, and the cells, which follow the mouse; letting go sets the threshold as a score."""
    rule, levels = line.rule, levels_of(view, line.rule)
    suspect = rule.kind == "suspect"
    bins = session.prepared(
        view, ("bins", rule.kind, rule.occurrences, rule.mode, rule.score), lambda: charts.histogram(levels.counted)
    )
    grid, cells = fewer_cells(*session.prepared(view, "cells", lambda: cells_of(view)), dragging.MOST_CELLS, "…")
    count = dragging.step_count(len(grid))
    steps = (
        dragging.steps_above(bins.axis, line.threshold, count)
        if suspect
        else charts.threshold_steps(bins.axis, line.threshold, count)
    )

    def moved(threshold: float) -> None:
        session.choose("given", "score")
        session.choose(rule.line_key, threshold)

    words = f"drag.scores.{rule.score}" if suspect else "drag.scores.sample" if rule.mode == "sample" else "drag.scores"
    dragging.drag_threshold(
        "drag",
        bins,
        levels.counts(steps),
        value=line.threshold,
        total=len(levels.counted),
        scores=t(words, occurrences=rule.occurrences),
        on_release=moved,
        cells=dragging.Cells(grid, levels.in_cells(cells, len(grid), steps)),
        above=suspect,
    )


# ---- the list -------------------------------------------------------------------------------------------------------------------


def decided(run: Run, view: View, line: Line, verdicts: pd.DataFrame) -> tuple[pd.DataFrame, Overruled]:
    """The rule's list, and the final one after people had their say. What the suspect rule finds is only for them to look at."""
    if line.rule.kind == "suspect":
        found = view.suspects(line.rule.score, line.threshold)
        blank: dict[str, Any] = {"occurrences": 0, "average_influence": 0.0, "affected_tests": [[] for _ in range(len(found))]}
        found = found.assign(**blank)
        return found, overruled(found.head(0), found, verdicts)
    rule = line.rule
    chosen = view.exclusions(line.threshold, rule.occurrences, rule.most, rule.mode)
    return chosen, after_people(view, chosen, verdicts, line.settings())


def receipt(run: Run, view: View, line: Line, chosen: pd.DataFrame, final: Overruled) -> None:
    """What the list takes away, in figures and, where it takes much, in warnings."""
    below, removed = levels_of(view, line.rule).counts(line.threshold).iloc[0], view.removed(final.entries)
    entries = final.entries
    named = set(entries["id"]) if "id1" not in entries else {*entries["id1"], *entries["id2"]}
    met = int(below["entries"])
    figures = {
        "listed": f"{len(entries):,} / {met:,}" if line.rule.kind == "harm" and len(entries) != met else f"{len(entries):,}",
        "below" if line.rule.kind == "harm" else "above": f"{int(below['pairs']):,}",
        "removed": f"{int(removed.sum()):,} ({removed.mean():{'.0%' if removed.mean() >= WHOLE else '.1%'}})",
        "samples": f"{len(named):,} / {len(view.train_samples):,}",
    }
    with st.container(horizontal=True):
        for name, value in figures.items():
            st.metric(t(f"receipt.{name}"), value, help=t(f"receipt.{name}.help"), border=True, width=220)
    st.markdown(f"{last_step(view, line)} {sum_in_words(line, chosen, final)}")
    if line.rule.kind == "harm":
        st.markdown(f":small[{usual_in_words(view, line.rule)}]")
        if len(chosen) == line.rule.most and met > len(chosen):
            st.info(t("guard.capped", n=len(chosen), all=met), icon=":material/content_cut:")
    for warning in guard_rails(view, line, final, removed.mean(), view.angle_grid(removed.astype(float))):
        st.warning(warning, icon=":material/warning:")
    if run.simulated:
        st.info(t("receipt.simulated"), icon=":material/science:")


def last_step(view: View, line: Line) -> str:
    """What the newest change of the rule or its line brought in and took out, before the cap; empty before there was one."""
    now = (id(view), line)
    kept = st.session_state.setdefault("_lines", [now])
    if kept[-1] != now:
        kept[:] = [kept[-1], now]
    before = kept[0][1]
    if (
        len(kept) < 2
        or kept[0][0] != id(view)
        or (before.rule.kind, before.rule.lists_pairs) != (line.rule.kind, line.rule.lists_pairs)
    ):
        return ""
    had, has = (levels_of(view, one.rule).chosen(one.threshold) for one in (before, line))
    return t("threshold.last_step", entered=int((has & ~had).sum()), left=int((had & ~has).sum()))


def sum_in_words(line: Line, chosen: pd.DataFrame, final: Overruled) -> str:
    """How the final list came about: the rule's, those excluded, those kept."""
    if line.rule.kind == "suspect":
        return t("verdict.sum.suspect", found=len(chosen), excluded=final.added, final=len(final.entries))
    return t("verdict.sum", rule=final.by_rule, excluded=final.added, kept=final.kept, final=len(final.entries))


def usual_in_words(view: View, rule: Rule) -> str:
    """What the command line's default threshold means on this run's scale."""
    tests = len(view.test_pairs)
    if tests < TIMES:
        return t("threshold.usual.never", tests=tests)
    usual = Rule("harm", rule.mode, TIMES)
    found, lowest = levels_of(view, usual).counts(USUAL).iloc[0], float(levels_of(view, rule).counted.min())
    share = found["pairs"] / max(len(levels_of(view, usual).counted), 1)
    return t(
        "threshold.usual", n=int(found["pairs"]), share=f"{share:.1%}", lowest=charts.short(lowest), occurrences=rule.occurrences
    )


def guard_rails(view: View, line: Line, final: Overruled, share: float, lost: pd.DataFrame) -> list[str]:
    """Sentences of caution about a list: nothing in it and why, much in it, or an angle pair that loses half of its pairs."""
    said = []
    if final.entries.empty:
        said.append(t("guard.nothing" if line.rule.kind == "harm" else "guard.undecided"))
        if line.rule.kind == "harm" and not final.by_rule:
            lowest = levels_of(view, line.rule).counted.min()
            said.append(t("guard.too_low", threshold=f"{line.threshold:g}", lowest=charts.short(lowest)))
    if share > MUCH:
        said.append(t("guard.much", share=f"{share:.0%}"))
    if line.rule.mode == "full_pair" and len(final.entries):
        said.append(t("guard.full_pair", n=len(final.entries), share=f"{share:.0%}"))
    halved = lost[lost["mean"] > HALF].sort_values("mean", ascending=False)
    if len(halved):
        cells = ", ".join(
            f"{plain(widgets.cell_label(row['low'], row['high']))} ({row['mean']:.0%})" for _, row in halved.head(3).iterrows()
        )
        said.append(t("guard.angles", n=len(halved), cells=cells))
    return said


def preview(view: View, line: Line, final: Overruled) -> None:
    """The list in its order, as it would be written."""
    entries, rule = final.entries, line.rule
    told = ("what", "score", "id") if rule.kind == "suspect" else ("what", "occurrences", "average_influence", "total_harm", "id")
    entries = entries.assign(what=names_of(view, entries))
    by_people = ("decided_by",) if final.added and rule.kind == "harm" else ()
    columns = {name: t(f"list.{name}") for name in (*told, *by_people) if name in entries}
    number, texts = st.column_config.NumberColumn, st.column_config.TextColumn
    config = {
        name: texts(label, width=210)
        if name in ("id", "what")
        else number(label, format="%.4g" if name in ("score", "average_influence", "total_harm") else None, width=120)
        for name, label in columns.items()
        if name != "decided_by"
    } | {name: columns[name] for name in by_people if name in columns}
    table = entries[list(columns)]
    if by_people:
        table = table.assign(decided_by=[t(f"list.by.{who}") for who in table["decided_by"]])
    st.dataframe(table, hide_index=True, column_config=config, height=min(38 + 35 * max(len(table), 1), 420))
    order = "list.order.suspect" if rule.kind == "suspect" else f"list.order.{rule.mode}"
    st.markdown(f":small[{t(order, n=len(entries))}]")


def names_of(view: View, entries: pd.DataFrame) -> list[str]:
    """Each entry in a few words, as on its card."""
    table = view.train_pairs if "id1" in entries or view.train.noun != "pair" else view.train_samples
    known = table[table["id"].isin(entries["id"])].drop_duplicates("id").set_index("id", drop=False)
    return [entry_name(known.loc[name]) if name in known.index else str(name) for name in entries["id"]]


def entry_name(entry: pd.Series) -> str:
    """A pair, a recording or a sample in a few words."""
    if "id1" not in entry and "angle" in entry:
        return f"{entry['angle']:g}° · {examples.take(str(entry['id']))}"
    return examples.example_label(entry)


def samples_of(entry: pd.Series) -> tuple[str, ...]:
    """The two samples of a pair, or the sample."""
    return (str(entry["id1"]), str(entry["id2"])) if "id1" in entry else (str(entry["id"]),)


def verdict_on(entry: pd.Series, verdicts: pd.DataFrame) -> pd.Series | None:
    """The verdict that stands on this entry."""
    about = subject(samples_of(entry))
    return verdicts.loc[about] if about in verdicts.index else None
