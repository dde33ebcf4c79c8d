"""Exclusion lists of the past: what each was made from, and how they overlap."""

from typing import Any, Final

import pandas as pd
import streamlit as st

from pages.shared import comparing_figures as figures
from pages.shared import session, widgets
from pages.shared.i18n import has, t
from pages.shared.saving import moment
from pages.shared.session import plain
from tracin_core.records.past_lists import PastList, origins, past_lists
from tracin_core.scores.agreement import jaccard

SETTINGS: Final = {  # of a rule, as it is kept -> as the Threshold page calls it
    "threshold": "threshold.value", "min_occurrences": "threshold.occurrences", "max_exclusions": "threshold.most", "pair_mode": "mode",
    "rule": "rule", "score": "suspect", "quantile": "threshold.quantile", "robust_z": "threshold.robust_z",
}  # fmt: skip
MOST: Final = 200  # rows of the table
COMPARED: Final = 10  # in the matrix
TAKES: Final = 20


def lists() -> None:
    """Every exported list of the workspace, of any run; one of them looked at; and how alike the newest are."""
    found = past_lists(session.workspace())
    if not found:
        st.markdown(t("past.none"))
        return
    table(found)
    readable = [past for past in found if not past.problem]
    if readable:
        look_at(readable, {past.key: number_of(past, found) for past in found})
    if len(readable) > 1:
        overlap(readable[:COMPARED], found)


def table(found: list[PastList]) -> None:
    """One row per list, numbered from the oldest, so that a number stays a list's own while others are added."""
    rows = [
        {
            "number": number_of(past, found), "when": moment(past.created), "run": past.run_name, "entries": past.entries, "who": past.who,
            "why": past.why, "scores": scores_in_words(past), "rule": rule_in_words(past),
        }
        for past in found[:MOST]
    ]  # fmt: skip
    columns = {name: t(f"past.{name}") for name in ("number", "when", "run", "entries", "who", "why", "scores", "rule")}
    st.dataframe(pd.DataFrame(rows), hide_index=True, column_config=columns, height=min(38 + 35 * len(rows), 320))
    st.markdown(f":small[{t('finding.shown', shown=len(rows), total=len(found))}]")


def number_of(past: PastList, found: list[PastList]) -> int:
    return len(found) - found.index(past)


def rule_in_words(past: PastList) -> str:
    """The rule's settings, or what is wrong with the list."""
    return past.problem or settings_in_words(past.rule)


def settings_in_words(rule: dict[str, Any]) -> str:
    """Those that the Threshold page knows by the names that they have there."""
    return ", ".join(f"{setting_name(name)} {setting_value(name, value)}" for name, value in rule.items())


def setting_name(name: str) -> str:
    return t(SETTINGS[name]) if name in SETTINGS else name


def setting_value(name: str, value: object) -> str:
    told = {"pair_mode": "mode", "rule": "rule", "score": "suspect"}.get(name)
    if told and has(f"{told}.{value}"):
        return t(f"{told}.{value}")
    return f"{value:.10g}" if isinstance(value, float) else "–" if value is None else str(value)


def scores_in_words(past: PastList) -> str:
    return "–" if past.problem else t("past.scores.same" if past.same_scores else "past.scores.changed")


def look_at(found: list[PastList], numbers: dict[str, int]) -> None:
    """Which angles, or labels, and which takes the entries of one list are of."""
    names = {past.key: f"{numbers[past.key]} · {moment(past.created)} · {past.run_name} · {past.entries:,}" for past in found}
    picker = session.linked("list", found[0].key, valid=names)
    chosen = st.selectbox(t("past.list"), list(names), format_func=names.__getitem__, **picker)
    past = next(past for past in found if past.key == chosen)
    run = session.run(past.run)
    by_class, by_take = origins(past, run.samples)
    if not past.named:
        widgets.nothing_matches(t("past.empty"))
        return
    with st.container(horizontal=True, gap="medium"):
        places = [st.container(width=430), st.container(width=430)]
    if run.task == "ranking":
        by_class = by_class.rename(lambda angle: f"{angle:g}°")
    takes = by_take.head(TAKES) if run.task == "ranking" else by_take.head(0)
    for name, counts, place in zip(("classes", "takes"), (by_class, takes), places, strict=True):
        if len(counts):
            with place:
                what = t(f"past.{name}.angles" if name == "classes" and run.task == "ranking" else f"past.{name}")
                first = counts.idxmax()
                told = t("past.words", what=what, n=len(past.named), first=plain(str(first)), count=int(counts.max()))
                figure = figures.bars(counts, x=what, y=t("past.entries"))
                widgets.chart(figure, key=f"past.{name}", alt=told)
                st.markdown(told)


def overlap(shown: list[PastList], found: list[PastList]) -> None:
    """How alike every two lists are, by the samples that they name, so that lists of pairs and of samples can be held together."""
    alike = jaccard([past.samples for past in shown])
    names = [t("past.named", n=number_of(past, found), run=past.run_name[:24]) for past in shown]
    pairs = [(alike[i, j], i, j) for i in range(len(shown)) for j in range(i)]
    most, i, j = max(pairs)
    told = t("past.overlap.words", a=names[j], b=names[i], value=f"{most:.2f}", n=len(shown), total=len(found))
    st.markdown(f"**{t('past.overlap')}**")
    widgets.chart(figures.overlap_matrix(alike, names, name="Jaccard"), key="past.overlap", alt=told)
    st.markdown(told)
