"""The frame around every page: the list of pages, the sidebar, title and provenance, and errors as advice."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NoReturn

import pandas as pd
import streamlit as st
from streamlit.navigation.page import Page

from pages.shared import access, saving, session, widgets
from pages.shared.i18n import LANGUAGES, preferred, speak_of, t
from pages.shared.session import plain
from tracin_core.errors import TracInError
from tracin_core.records.runs import Run

PAGES: Final = Path(__file__).parents[1]

ICON: Final = Path(__file__).with_name("icon.svg")  # a named icon would be fetched from a server outside

# section -> page (file, address and text key) -> icon; the first page is where `/` leads.
SECTIONS: Final = {
    "prepare": {"overview": "space_dashboard", "train": "model_training", "compute": "play_circle"},
    "explore": {"distribution": "bar_chart", "angles": "grid_on", "neighbours": "compare_arrows"},
    "decide": {
        "threshold": "tune",
        "calibrate": "straighten",
        "verify": "fact_check",
        "compare": "stacked_line_chart",
        "findings": "summarize",
    },
}
HOME: Final = "overview"


def show() -> None:
    """The page that the address names is on the screen, in the frame. Runs at each visit, before any page."""
    st.set_page_config(page_title="TracIn Studio", page_icon=str(ICON), layout="wide")
    language = session.linked("lang", preferred(), valid=LANGUAGES, quiet=True)  # before the first text
    person = access.guard()
    lost = saving.follow_link(list_pages, page_named)
    with st.sidebar, advice():
        choose_run()
    run = run_in_view()
    speak_of("pair" if run is None else run.noun)  # before the list of pages names them
    pages = list_pages()
    with st.sidebar:
        with advice():
            job_pill()
        if person:
            st.markdown(f":small[{t('access.signed_in', name=plain(person))}]")
        st.segmented_control(t("language"), list(LANGUAGES), format_func=LANGUAGES.__getitem__, required=True, **language)
        widgets.document(st.session_state["lang"])
    if lost is None:
        pages.run()
        return
    st.header(t("page.findings"))
    widgets.failure(lost)
    page_link("findings", t("finding.all"), icon=":material/arrow_forward:")


def list_pages() -> Page:
    """The list of pages is in the sidebar; gives back the one that the address names."""
    return st.navigation({t(f"section.{name}"): [page_named(page) for page in pages] for name, pages in SECTIONS.items()})


def page_named(name: str) -> Page:
    """The page in `pages/<name>.py`, in the language in use."""
    icon = next(pages[name] for pages in SECTIONS.values() if name in pages)
    return st.Page(PAGES / f"{name}.py", title=t(f"page.{name}"), icon=f":material/{icon}:", url_path=name, default=name == HOME)


def page_link(name: str, label: str, *, icon: str | None = None, **parameters: str | int | float) -> None:
    """A link to a page with these parameters; the run in view goes along."""
    st.page_link(page_named(name), label=label, icon=icon, query_params=told_to(parameters))


def go_to(name: str, **parameters: str | int | float) -> NoReturn:
    """The page is opened as if such a link were clicked."""
    st.switch_page(page_named(name), query_params=told_to(parameters))


def told_to(parameters: Mapping[str, str | int | float]) -> dict[str, str]:
    """What a link from this page to another tells it."""
    told = {"run": st.session_state.get("run"), **parameters}
    return {key: str(value) for key, value in told.items() if value is not None}


@contextmanager
def page(title: str, **values: Any) -> Iterator[None]:
    """The page's title and the run's provenance are on the screen; what goes wrong inside is shown as advice.

    Args:
        title: a text key.
        values: what the text's placeholders stand for.
    """
    run = run_in_view()
    with st.container(horizontal=True, vertical_alignment="center"):
        st.header(t(title, **values), width="content")
        if run is not None and run.simulated:
            st.badge(t("run.simulated"), icon=":material/science:", color="orange", help=t("run.simulated.help"))
        guessing = at_chance(run)
        if guessing is not None:
            st.badge(t("run.at_chance"), icon=":material/casino:", color="red", help=plain(guessing))
        if run is not None and run.other_optimizer is not None:
            st.badge(
                t("run.sgd_formula", optimizer=run.other_optimizer),
                icon=":material/info:",
                color="orange",
                help=t("run.sgd_formula.help"),
            )
        if run is not None and run.damping is not None:
            told = t("run.ekfac.help", damping=f"{run.damping:g}")
            st.badge(t("run.ekfac_formula"), icon=":material/info:", color="blue", help=told)
        elif run is not None and run.precondition != "none":
            st.badge(t("run.adam_formula"), icon=":material/info:", color="blue", help=t(f"run.{run.precondition}.help"))
        if run is not None and run.kind == "scores":
            st.badge(t("run.imported"), icon=":material/file_open:", color="violet", help=t("run.imported.help"))
        if run is not None:
            saving.save_this(title.removeprefix("page."), run)
    if run is not None:
        st.markdown(f":small[{provenance(run)}]")
        if run.verdict:
            st.warning(t("imported.not_per_pair", reasons=plain("; ".join(run.verdict))), icon=":material/report:")
    saving.banner(run)
    with advice():
        yield


@contextmanager
def advice() -> Iterator[None]:
    """What goes wrong inside is shown as a card with its cause and the next step; nothing to show yet, as a way to begin."""
    try:
        yield
    except session.NothingYet:
        nothing_yet()
    except widgets.Lacking as lack:
        widgets.nothing_matches(t(f"imported.lacks.{lack}"))
    except Exception as failure:
        widgets.failure(failure)


def run_in_view() -> Run | None:
    """The selected run, or None where there is none to be had; the page's body says why."""
    try:
        return session.selected_run()
    except (session.NothingYet, TracInError):
        return None


def at_chance(run: Run | None) -> str | None:
    """What shows that the run's model does no better than guessing; None where it does, or that cannot be known here."""
    if run is None or run.kind == "scores":
        return None
    try:
        return None if run.above_chance.passed else run.above_chance.detail
    except TracInError:  # the page's body says why
        return None


def provenance(run: Run) -> str:
    """What a reader must know of a run before believing a plot of it, as Markdown."""
    who = run.manifest.who
    return " · ".join(
        [
            f"**{plain(run.name)}**",
            plain(run.recipe.data.title),
            plain(run.loss.describe()),
            checkpoints(len(run.summed_epochs)),
            t("run.pairs", train=run.counts[0], test=run.counts[1]) + ("" if run.kind == "scores" else t("run.side")),
            f"`{run.digest[:8]}`",
            *([t("run.who", who=plain(who))] if who else []),
        ]
    )


def checkpoints(count: int) -> str:
    """How many; none of imported scores."""
    return t("run.checkpoints", n=count) if count > 1 else t("run.checkpoint") if count else t("run.imported.loss")


# ---- sidebar --------------------------------------------------------------------------------------------------------------------


def choose_run() -> None:
    """The picker of the run in view. A run that a link names and that is not here stays chosen, and is said not to be here."""
    runs = session.finished_runs().set_index("id")
    asked = st.query_params.get("run") or st.session_state.get("run")
    ids = [*runs.index, *([asked] if asked and asked not in runs.index else [])]
    if ids:
        picker = session.linked("run", str(ids[0]))
        st.selectbox(t("run"), ids, format_func=lambda run_id: run_label(runs, run_id), **picker)


def run_label(runs: pd.DataFrame, run_id: str) -> str:
    """A run in a list: its name, and the start of its id where the name alone would not tell."""
    if run_id not in runs.index:
        return t("run.unknown", id=run_id[:40])
    name = str(runs.at[run_id, "name"])
    return f"{name} · {run_id[:4]}" if (runs["name"] == name).sum() > 1 else name


def job_pill() -> None:
    """What is being computed, while something is; the page is drawn anew once it begins or ends."""
    live = session.live_jobs()
    if live:
        st.fragment(_job_pill, run_every=1.0)([(job.id, job.state) for job in live])


def _job_pill(shown: list[tuple[str, str]]) -> None:
    live = session.live_jobs()
    if [(job.id, job.state) for job in live] != shown:
        st.rerun()
    with st.container(border=True):
        widgets.progress(live[-1])
        if len(live) > 1:
            st.markdown(f":small[{t('job.waiting', n=len(live) - 1)}]")


def running(kind: str, run: Run) -> None:
    """Says so where jobs of this kind are under way for the run, or wait, and where they are ended. None is asked for twice."""
    live = [job for job in session.live_jobs() if job.kind == kind and job.request.get("run") == run.id]
    for job in live:
        told = "job.in_line" if job.state == "queued" else "job.running"
        st.info(t(told, title=plain(widgets.job_title(job))), icon=":material/hourglass_top:")
    if live:
        page_link("compute", t("job.all"), icon=":material/arrow_forward:")


def nothing_yet() -> None:
    """No run is finished: what is being computed, what went wrong, or how to begin."""
    live = session.live_jobs()
    widgets.last_failure()
    with st.container(border=True):
        if live:
            st.markdown(f"**{t('empty.computing')}** {t('empty.computing.next')}")
            return
        st.markdown(f"**{t('empty.title')}** {t('empty.next')}")
        with st.container(horizontal=True):
            if st.button(t("empty.demo"), type="primary", icon=":material/science:", key="start_demo"):
                session.workspace().start_demo()
                st.rerun()
            if st.button(t("empty.digits"), icon=":material/photo_library:", key="start_digits", help=t("empty.digits.help")):
                session.workspace().start_digits_demo()
                st.rerun()
            page_link("compute", t("empty.compute"), icon=":material/play_circle:")
