"""Saving the view on the screen, opening one that was saved, and the list of all."""

from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

import streamlit as st
from streamlit.navigation.page import Page

from pages.shared import access, session, widgets
from pages.shared.i18n import has, language, t
from pages.shared.session import plain
from tracin_core.errors import NotFoundError, TracInError
from tracin_core.records.findings import AUTHOR_LENGTH, NOTE_LENGTH, TITLE_LENGTH, SavedView, SavedViews
from tracin_core.records.report.saved import changes, saved_html
from tracin_core.records.runs import Run

LINK: Final = "f"  # `?f=<id>` opens a saved view
OPENED: Final = "from"  # the saved view that the parameters beside it came from
OURS: Final = (LINK, OPENED, "lang")  # in the address, but no part of what is saved
MOST: Final = 50


def saved_views() -> SavedViews:
    """Those of this server's workspace."""
    return SavedViews(session.workspace().root)


# ---- saving ---------------------------------------------------------------------------------------------------------------------


def save_this(page: str, run: Run) -> None:
    """What is on the screen can be kept, under a title, with a note."""
    with st.popover(t("finding.save"), icon=":material/bookmark_add:", width="content"):
        with st.form(f"finding.{page}", border=False):
            st.text_input(t("finding.title"), key="finding.title", max_chars=TITLE_LENGTH)
            st.text_area(t("finding.note"), key="finding.note", max_chars=NOTE_LENGTH)
            if not access.person():
                st.text_input(t("finding.who"), key="finding.who", value=access.usual_name(), max_chars=AUTHOR_LENGTH)
            st.form_submit_button(t("finding.save.now"), type="primary", key="finding.keep", on_click=_keep, args=(page, run))
        failed = st.session_state.pop("_save_failed", None)
        if failed is not None:
            widgets.failure(failed)
        kept = st.session_state.get("_saved")
        if kept is not None and kept.page == page:
            st.markdown(t("finding.saved", title=plain(kept.title)))
            st.code(short_link(kept.id), language=None, wrap_lines=True)


def _keep(page: str, run: Run) -> None:
    st.session_state["_who"] = st.session_state.get("finding.who", "")
    try:
        st.session_state["_saved"] = saved_views().save(
            title=st.session_state["finding.title"],
            note=st.session_state["finding.note"],
            author=access.person() or st.session_state["_who"],
            page=page,
            parameters=parameters(),
            run=run.id,
            digest=run.digest,
            run_name=run.name,
        )
    except TracInError as failure:
        st.session_state["_save_failed"] = failure
        return
    st.session_state["finding.title"] = st.session_state["finding.note"] = ""
    st.toast(t("finding.saved", title=plain(st.session_state["_saved"].title)), icon=":material/check:")


def parameters() -> dict[str, str]:
    """What the address says, without the reader's language and where it came from."""
    return {name: value for name, value in st.query_params.items() if name not in OURS}


def short_link(view_id: str) -> str:
    """The address that opens a saved view."""
    return f"{address()}/?{urlencode({LINK: view_id})}"


def full_link(saved: SavedView) -> str:
    """The address that says all by itself, and where it came from."""
    return f"{address()}/{saved.page}?{urlencode({**saved.parameters, OPENED: saved.id})}"


def address() -> str:
    """Where visitors find this server, without the page."""
    told = urlsplit(st.context.url or "")
    path = told.path.rstrip("/")
    page = path.rpartition("/")
    return f"{told.scheme}://{told.netloc}{page[0] if has(f'page.{page[2]}') else path}" if told.netloc else ""


# ---- opening --------------------------------------------------------------------------------------------------------------------


def follow_link(list_pages: Callable[[], Page], page_named: Callable[[str], Page]) -> TracInError | None:
    """The saved view that the address names takes the place of this page, exactly as saved; what keeps it from that is given back."""
    asked = st.query_params.get(LINK)
    if asked is None:
        return None
    try:
        saved = saved_views().get(asked)
        if not has(f"page.{saved.page}"):
            raise NotFoundError(
                f"The saved view '{saved.id}' is of the page '{saved.page[:40]}', which this version does not have."
            )
    except TracInError as failure:
        return failure
    session.forget()
    spoken = {"lang": st.query_params["lang"]} if "lang" in st.query_params else {}
    list_pages()
    return st.switch_page(page_named(saved.page), query_params={**saved.parameters, OPENED: saved.id, **spoken})


def banner(run: Run | None) -> None:
    """Which saved view this is, whether it still is, and what has changed since. Nothing where the address names none."""
    asked = st.query_params.get(OPENED)
    if asked is None:
        return
    try:
        saved = saved_views().get(asked)
    except TracInError as failure:
        st.warning(t("finding.gone", why=plain(str(failure))), icon=":material/link_off:")
        return
    who = plain(saved.author) or t("finding.nobody")
    told = t("finding.opened", title=plain(saved.title), who=who, when=moment(saved.created))
    left = saved.parameters != parameters()
    st.info(f"{told} {t('finding.left', link=short_link(saved.id)) if left else ''}".strip(), icon=":material/bookmark:")
    if not left and run is not None:
        for change in changes(saved, run):
            st.warning(t(f"finding.changed.{change}", then=saved.digest[:8], now=run.digest[:8], version=plain(saved.version)))


def moment(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"


# ---- all of them ----------------------------------------------------------------------------------------------------------------


def listed(page_link: Callable[..., None]) -> None:
    """Every saved view, newest first, with what can be done with it; and those that were removed.

    Args:
        page_link: `frame.page_link`.
    """
    views = saved_views().all()
    for strange in saved_views().unreadable():
        st.warning(plain(strange.reason), icon=":material/broken_image:")
    failed = st.session_state.pop("_change_failed", None)
    if failed is not None:
        widgets.failure(failed)
    if not views:
        st.markdown(t("finding.none"))
    else:
        sought = str(st.text_input(t("finding.find"), width=320, **session.linked("find", ""))).casefold()
        found = [view for view in views if sought in f"{view.title}\n{view.note}\n{view.author}".casefold()]
        st.markdown(f":small[{t('finding.shown', shown=min(len(found), MOST), total=len(views))}]")
        here = set(session.finished_runs()["id"])
        for saved in found[:MOST]:
            one(saved, page_link, is_here=saved.run in here)
        export(views)
    removed()


def one(saved: SavedView, page_link: Callable[..., None], *, is_here: bool) -> None:
    """One saved view: title, note, who and when, its link, and how to change it."""
    with st.container(border=True):
        st.markdown(f"**{plain(saved.title)}**")
        who = plain(saved.author) or t("finding.nobody")
        place = t(f"page.{saved.page}") if has(f"page.{saved.page}") else plain(saved.page)
        run = plain(saved.run_name) if is_here else t("finding.no_run", run=plain(saved.run_name))
        edited = t("finding.edited", when=moment(saved.edits[-1]["created"])) if saved.edits else ""
        st.markdown(f":small[{' · '.join(filter(None, [place, run, who, moment(saved.created), edited]))}]")
        if saved.note and saved.note != saved.title:
            st.markdown("  \n".join(plain(line) for line in saved.note.splitlines()))
        with st.container(horizontal=True, vertical_alignment="center"):
            page_link(
                saved.page if has(f"page.{saved.page}") else "findings",
                t("finding.open"),
                icon=":material/open_in_new:",
                f=saved.id,
            )
            with st.popover(t("finding.link"), icon=":material/link:", width="content"):
                st.markdown(t("finding.link.short"))
                st.code(short_link(saved.id), language=None, wrap_lines=True)
                st.markdown(t("finding.link.full"))
                st.code(full_link(saved), language=None, wrap_lines=True)
            with st.popover(t("finding.edit"), icon=":material/edit:", width="content"), st.form(f"edit.{saved.id}", border=False):
                st.text_input(t("finding.title"), saved.title, key=f"edit.title.{saved.id}", max_chars=TITLE_LENGTH)
                st.text_area(t("finding.note"), saved.note, key=f"edit.note.{saved.id}", max_chars=NOTE_LENGTH)
                st.form_submit_button(
                    t("finding.edit.now"), key=f"edit.keep.{saved.id}", type="primary", on_click=_edit, args=(saved.id,)
                )
            download([saved], t("finding.html"), saved.id)
            st.button(
                t("finding.remove"), icon=":material/delete:", key=f"remove.{saved.id}", on_click=_change, args=("remove", saved.id)
            )  # fmt: skip


def _edit(view_id: str) -> None:
    title, note = (st.session_state[f"edit.{part}.{view_id}"] for part in ("title", "note"))
    _change("edit", view_id, title=title, note=note, who=access.person() or access.usual_name())


def _change(what: str, view_id: str, **told: Any) -> None:
    try:
        getattr(saved_views(), what)(view_id, **told)
    except TracInError as failure:
        st.session_state["_change_failed"] = failure
        return
    st.toast(t(f"finding.{what}.done"), icon=":material/check:")


def export(views: list[SavedView]) -> None:
    """All saved views as one file."""
    download(views, t("finding.html.all", n=len(views)), "all")


def download(views: list[SavedView], label: str, name: str) -> None:
    """A button that writes these saved views as one HTML file once it is pressed."""
    write = partial(saved_html, views, language(), place=session.workspace())
    st.download_button(
        label, write, f"saved_views_{name}.html", "text/html", key=f"html.{name}", on_click="ignore", icon=":material/download:"
    )


def removed() -> None:
    """What was removed, and the way back."""
    gone = saved_views().removed()
    if gone:
        with st.expander(t("finding.removed", n=len(gone)), icon=":material/restore_from_trash:"):
            for saved in gone[:MOST]:
                with st.container(horizontal=True, vertical_alignment="center"):
                    st.markdown(f"{plain(saved.title)} · :small[{moment(saved.created)}]", width="content")
                    st.button(t("finding.restore"), key=f"restore.{saved.id}", on_click=_change, args=("restore", saved.id))
