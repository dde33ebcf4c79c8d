"""Looking at what lies near the line, one by one, and deciding: by button or by key, kept on disk at once."""

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import pandas as pd
import streamlit as st

from pages.shared import access, examples, session, widgets
from pages.shared.i18n import t
from pages.shared.session import plain
from pages.shared.threshold import deck
from pages.shared.threshold.exclusion import Line, entry_name, levels_of, samples_of, verdict_on
from tracin_core.errors import TracInError
from tracin_core.records.runs import Run
from tracin_core.records.verdicts import Verdict, subject, subjects
from tracin_core.scores.view import View

ICONS: Final = {"exclude": "block", "keep": "check_circle", "look_again": "replay"}
EACH: Final = 6  # on either side of the line
PAGE: Final = 12
TIMES: Final = "%Y-%m-%d %H:%M UTC"


def desk(run: Run, view: View, line: Line, chosen: pd.DataFrame, verdicts: pd.DataFrame) -> str:
    """What there is to look at, as cards, and the buttons that decide about the one that is looked at; gives back who decides."""
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        who = choose_who()
        what = widgets.choose_code("desk", ("borderline", "listed", "decided"), key="desk")
    shown = {"borderline": borderline, "listed": listed, "decided": already_decided}[what](view, line, chosen, verdicts)
    if shown.empty:
        widgets.nothing_matches(t(f"desk.{what}.none"))
        return who
    current = choose_entry(shown, verdicts)
    lay_out(run, line, shown.assign(state=states(shown, chosen, line)), current, verdicts, who)
    with st.container(border=True):
        decide(run, line, shown, current, verdicts, who)
        examples.example_card(run, shown[shown["id"] == current].iloc[0])
    return who


def lay_out(run: Run, line: Line, shown: pd.DataFrame, current: str, verdicts: pd.DataFrame, who: str) -> None:
    """The cards on either side of the line; one may be chosen to be looked at, or decided about where it lies."""
    entry_of = {str(entry["id"]): entry for _, entry in shown.iterrows()}
    told = {name: verdict_on(entry, verdicts) for name, entry in entry_of.items()}
    cards = {
        name: deck.Card(
            id=name,
            name=entry_name(entry),
            told=f"{entry['level']:,.5g} · {t('desk.state.' + entry['state'])}",
            verdict=None if told[name] is None else str(told[name]["verdict"]),
            samples=samples_of(entry),
        )
        for name, entry in entry_of.items()
    }
    ids = list(cards)

    def decided(name: str, verdict: Verdict) -> None:
        """A verdict that stands already is taken back; the next is looked at where this one was."""
        stands, here = cards[name].verdict == verdict, name == current
        following = ids[min(ids.index(name) + 1, len(ids) - 1)] if here and not stands else current
        tell(run, line, entry_of[name], "none" if stands else verdict, who, following, reasoned=name == current)()

    sides = [
        (t(f"{title}.{line.rule.kind}") if title else "", [cards[str(name)] for name in shown.loc[shown["side"] == side, "id"]])
        for side, title in (("listed", "desk.listed_side"), ("not", "desk.not_side"), ("", ""))
    ]
    deck.show(
        run,
        [(title, side) for title, side in sides if side],
        current=current,
        frozen="" if who else t("verdict.who_first"),
        on_look=lambda name: session.choose("look", name),
        on_verdict=decided,
    )


def states(part: pd.DataFrame, chosen: pd.DataFrame, line: Line) -> list[str]:
    """What the rule does with each, before people had their say: lists it, meets it but cuts it by the limit, or does not."""
    listed = set(subjects(chosen))
    if line.rule.kind == "suspect":
        return ["review" if about in listed else "not" for about in subjects(part)]
    beyond = (part["level"] < line.threshold).tolist()
    return ["listed" if about in listed else "cut" if met else "not" for about, met in zip(subjects(part), beyond, strict=True)]


# ---- what is shown --------------------------------------------------------------------------------------------------------------


def borderline(view: View, line: Line, chosen: pd.DataFrame, verdicts: pd.DataFrame) -> pd.DataFrame:
    """The nearest on either side of the line, the farthest beyond it first."""
    levels = levels_of(view, line.rule)
    beyond, within = levels.borderline(line.threshold, EACH)
    return entries(view, line, np.concatenate([beyond[::-1], within]), ["listed"] * len(beyond) + ["not"] * len(within))


def listed(view: View, line: Line, chosen: pd.DataFrame, verdicts: pd.DataFrame) -> pd.DataFrame:
    """What the rule lists, in its order, a page at a time."""
    pages = max(-(-len(chosen) // PAGE), 1)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        page = session.linked("cards", 1, valid=range(1, pages + 1))
        st.number_input(t("desk.page", pages=pages), 1, pages, width=160, **page)
        first = (int(st.session_state["cards"]) - 1) * PAGE
        if len(chosen):
            st.markdown(t("desk.rows", first=first + 1, last=min(first + PAGE, len(chosen)), total=len(chosen)))
    place = pd.Series(np.arange(len(levels_of(view, line.rule).entries)), index=levels_of(view, line.rule).entries["id"])
    rows = place[~place.index.duplicated()].reindex(chosen["id"].iloc[first : first + PAGE]).to_numpy(dtype=np.int64)
    return entries(view, line, rows, [""] * len(rows))


def already_decided(view: View, line: Line, chosen: pd.DataFrame, verdicts: pd.DataFrame) -> pd.DataFrame:
    """Every verdict that stands, as a table; those on what this rule lists can be changed."""
    if verdicts.empty:
        return verdicts.assign(side="")
    words = [t(f"verdict.{verdict}") for verdict in verdicts["verdict"]]
    when = pd.to_datetime(verdicts["when"], format="ISO8601").dt.strftime(TIMES)
    rules = [t(f"rule.{rule}") if rule else "" for rule in verdicts["rule"]]
    told = {"id": verdicts["id"], "verdict": words, "who": verdicts["who"], "when": when, "why": verdicts["why"], "rule": rules}
    config = {name: t(f"verdict.column.{name}") for name in told}
    st.dataframe(pd.DataFrame(told), hide_index=True, column_config=config, height=min(38 + 35 * len(verdicts), 300))
    known = levels_of(view, line.rule).entries
    wanted = set(verdicts.index)
    rows = np.flatnonzero([about in wanted for about in subjects(known)])
    return entries(view, line, rows[:PAGE], [""] * len(rows[:PAGE]))


def entries(view: View, line: Line, rows: Any, sides: list[str]) -> pd.DataFrame:
    """What could be listed, with its level and which side of the line it is on."""
    levels = levels_of(view, line.rule)
    return levels.entries.iloc[rows].assign(level=levels.listed[rows], side=sides).reset_index(drop=True)


def choose_entry(shown: pd.DataFrame, verdicts: pd.DataFrame) -> str:
    """The id of the one that is looked at: the first that nobody decided about, until another is chosen."""
    open_ones = [about not in verdicts.index for about in subjects(shown)]
    ids = shown["id"].astype(str).tolist()
    names = {
        name: f"{place}. {entry_name(entry)}" for place, (name, (_, entry)) in enumerate(zip(ids, shown.iterrows(), strict=True), 1)
    }
    start = ids[open_ones.index(True)] if any(open_ones) else ids[0]
    picker = session.linked("look", start, valid=ids)
    here = ids.index(str(st.session_state["look"]))
    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.selectbox(t("desk.look"), ids, format_func=names.__getitem__, width=360, **picker)
        for step, name, key in ((-1, "back", "B"), (1, "next", "V")):
            to = ids[min(max(here + step, 0), len(ids) - 1)]
            icon = f":material/arrow_{'back' if step < 0 else 'forward'}:"
            st.button(t(f"desk.{name}"), key=f"desk.{name}", icon=icon, shortcut=key, on_click=session.choose, args=("look", to))
    return str(st.session_state["look"])


# ---- deciding -------------------------------------------------------------------------------------------------------------------


def choose_who() -> str:
    """Whose decisions these are: who signed in, else the name given here, which begins as that of the account on this machine."""
    signed_in = access.person()
    if signed_in:
        return signed_in
    kept = access.usual_name()

    def keep() -> None:
        st.session_state["_who"] = st.session_state["who"]

    return st.text_input(t("export.who"), value=kept, key="who", width=240, on_change=keep).strip()


def decide(run: Run, line: Line, shown: pd.DataFrame, current: str, verdicts: pd.DataFrame, who: str) -> None:
    """The buttons, each with its key; what was said before about this one; and the way back."""
    failed = st.session_state.pop("_verdict_failed", None)
    if failed is not None:
        widgets.failure(failed)
    ids = shown["id"].astype(str).tolist()
    entry = shown.iloc[ids.index(current)]
    following = ids[min(ids.index(current) + 1, len(ids) - 1)]
    st.markdown(f"**{plain(entry_name(entry))}** · {said(verdict_on(entry, verdicts))}")
    with st.container(horizontal=True, vertical_alignment="bottom"):
        for verdict, key in deck.KEYS.items():
            st.button(
                t(f"verdict.{verdict}"),
                key=f"verdict.{verdict}",
                icon=f":material/{ICONS[verdict]}:",
                shortcut=key,
                disabled=not who,
                on_click=tell(run, line, entry, verdict, who, following),
            )
        st.text_input(t("verdict.why"), key="verdict.why", width=320, max_chars=500)
        if verdict_on(entry, verdicts) is not None:
            back = tell(run, line, entry, "none", who, current)
            st.button(t("verdict.withdraw"), key="verdict.withdraw", icon=":material/backspace:", disabled=not who, on_click=back)
        undo(run, line, who)
    if not who:
        st.markdown(t("verdict.who_first"))


def tell(
    run: Run,
    line: Line,
    entry: pd.Series,
    verdict: Verdict,
    who: str,
    following: str,
    *,
    undoing: bool = False,
    reasoned: bool = True,
) -> Callable[[], None]:
    """The verdict is on disk, and the next one is looked at; what went wrong is shown by the next drawing."""

    samples = samples_of(entry)

    def act() -> None:
        place = session.workspace()
        try:
            stands = place.verdicts(run)
            about = subject(samples)
            before = str(stands.at[about, "verdict"]) if about in stands.index else "none"
            why = str(st.session_state.get("verdict.why", "")) if reasoned else ""
            place.decide(run, samples, verdict, who=who, why=why, rule=line.rule.kind)
        except (TracInError, OSError) as failure:
            st.session_state["_verdict_failed"] = failure
            return
        if reasoned:
            st.session_state["verdict.why"] = ""
        done = st.session_state.setdefault("_told", [])
        if undoing:
            done.pop()
        else:
            done.append((run.id, entry, before))
        session.choose("look", following)
        st.toast(t(f"verdict.told.{verdict}", id=plain(entry_name(entry))), icon=":material/check:")

    return act


def undo(run: Run, line: Line, who: str) -> None:
    """One step back for what was decided in this session: a further verdict, which says what was said before."""
    done = [told for told in st.session_state.get("_told", []) if told[0] == run.id]
    if done:
        _, entry, before = done[-1]
        back = tell(run, line, entry, before, who, str(entry["id"]), undoing=True)
        st.button(
            t("verdict.undo"),
            key="verdict.undo",
            icon=":material/undo:",
            shortcut="U",
            help=plain(entry_name(entry)),
            on_click=back,
        )


def said(verdict: pd.Series | None) -> str:
    """What was decided about it, by whom, when and why."""
    if verdict is None:
        return t("verdict.open")
    when = pd.Timestamp(verdict["when"]).strftime(TIMES)
    why = f" “{plain(verdict['why'])}”" if verdict["why"] else ""
    return t("verdict.said", verdict=t(f"verdict.{verdict['verdict']}"), who=plain(verdict["who"] or "–"), when=when) + why
