"""One visitor's session: the workspace, the run in view, cached loading, and links."""

import math
import os
import re
from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import Any, Final, TypeVar, cast
from weakref import WeakKeyDictionary

import pandas as pd
import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

from pages.shared import access
from pages.shared.i18n import t
from tracin_core.records.jobs import Job
from tracin_core.records.runs import Run
from tracin_core.records.workspace import Workspace, open_workspace
from tracin_core.scores.view import View

T = TypeVar("T")
KEPT: Final = 24  # prepared things of one view


class NothingYet(Exception):
    """There is nothing to show yet. Not a failure: the frame shows how to begin."""


# ---- workspace and runs ---------------------------------------------------------------------------------------------------------


def workspace_path() -> str:
    """Where `TRACIN_WORKSPACE` points, by default `workspace` in the directory that the server was started in."""
    return os.path.abspath(os.environ.get("TRACIN_WORKSPACE") or "workspace")


def workspace() -> Workspace:
    """The workspace of this server; what is started in it bears the visitor's name, where the server asks for one."""
    return _open(workspace_path()).by(access.person())


@st.cache_resource(show_spinner=False)
def _open(path: str) -> Workspace:
    return open_workspace(path)


def finished_runs() -> pd.DataFrame:
    """The runs that can be looked at, newest first, with the columns of `workspace.runs()`."""
    runs = workspace().runs()
    return runs[runs["state"] == "done"].reset_index(drop=True)


def live_jobs() -> list[Job]:
    """Jobs that are queued or running, newest first."""
    return [job for job in workspace().jobs() if job.is_live]


def selected_run() -> Run:
    """The run that the address and the sidebar name.

    Raises:
        NothingYet: no run is finished, and none was asked for.
        NotFoundError: the run that was asked for is not in this workspace; no other takes its place.
    """
    run_id = st.session_state.get("run")
    if not run_id:
        raise NothingYet
    return run(run_id)


def run(run_id: str) -> Run:
    """The finished run with this id; its kernels are loaded once.

    Raises:
        NotFoundError: it is not in this workspace.
    """
    found = workspace().run(run_id)
    return _loaded(workspace_path(), found.id, found.digest, found)


@st.cache_resource(max_entries=4, show_spinner=False)
def _loaded(path: str, run_id: str, digest: str, _run: Run) -> Run:
    return _run


def view(run: Run, **settings: Any) -> View:
    """`run.view(**settings)`, kept for as long as the run's content stays the same. Shared by all visitors: do not change it."""
    known = tuple(sorted((name, tuple(value) if isinstance(value, list) else value) for name, value in settings.items()))
    return _view(workspace_path(), run.id, run.digest, known, run)


@st.cache_resource(max_entries=8, show_spinner=False)
def _view(path: str, run_id: str, digest: str, settings: tuple[tuple[str, Any], ...], _run: Run) -> View:
    return _run.view(**dict(settings))


_prepared: "WeakKeyDictionary[View, OrderedDict[Any, Any]]" = WeakKeyDictionary()


def prepared(view: View, what: Any, make: Callable[[], T]) -> T:
    """What was made of this view under this name, kept as long as the view is; beyond `KEPT` things, what was asked for longest ago goes.

    It must not hold the view, which would then be kept for ever.
    """
    known = _prepared.setdefault(view, OrderedDict())
    try:
        known.move_to_end(what)
        return cast(T, known[what])
    except KeyError:  # never made, or let go by another visitor's thread
        made = known[what] = make()
    while len(known) > KEPT:
        known.popitem(last=False)
    return made


# ---- state that a link carries --------------------------------------------------------------------------------------------------


def linked(
    key: str, default: T, *, valid: Collection[T] | Callable[[T], bool] | None = None, quiet: bool = False
) -> dict[str, Any]:
    """Keyword arguments that tie a widget to the address: `st.selectbox(label, options, **linked("test", options[0], valid=options))`.

    The address holds the plain value (Streamlit's own binding would put the translated label there, and leave out defaults, so that a
    link would mean something else in another language or with another default). What the address says wins; then what the session
    remembers, also from an earlier visit to the page; then the default. A value from a link that is not valid is named in a warning.

    Args:
        default: its type (str, int, float or bool) is the type of the value.
        quiet: the default stays out of the address, so that a link leaves it to whoever opens it.
    """
    value = _valued(key, default, valid)
    if value is None:
        value = default
    if _is_new_here(key) or st.session_state.get(key) != value:  # in this order: the first also remembers the page
        st.session_state[key] = value
    _tell(key, default if quiet else None)
    return {"key": key, "on_change": _tell, "args": (key,)}


def _is_new_here(key: str) -> bool:
    """The key's widget was last drawn on another page: Streamlit takes this one for another widget, which has to be told its value."""
    context = get_script_run_ctx()
    page = "" if context is None else context.page_script_hash
    drawn = cast(dict[str, str], st.session_state.setdefault("_drawn", {}))
    before, drawn[key] = drawn.get(key), page
    return before != page


def forget() -> None:
    """Nothing that a widget tied to the address showed so far is remembered, but for the language: the address alone says what is shown.

    Before any of these widgets is drawn.
    """
    for key in [key for key in _kept() if key != "lang"]:
        del _kept()[key]
        st.session_state.pop(key, None)


def choose(key: str, value: str | int | float | bool) -> None:
    """The widget tied to the address under this key takes the value. For callbacks: a click in a chart chooses what a picker shows."""
    st.session_state[key] = value
    _tell(key)


def _valued(key: str, default: T, valid: Collection[T] | Callable[[T], bool] | None) -> T | None:
    told = st.query_params.get(key)
    kept = _kept().get(key)
    raw = told if told is not None else st.session_state.get(key, kept)
    value = _parsed(raw, default)
    if value is not None and _is_valid(value, valid):
        return value
    if told is not None and told != _written(kept):
        st.warning(
            t("link.unknown", name=key, value=plain(told[:80]), default=plain(_written(default))), icon=":material/link_off:"
        )
    return None


def _parsed(raw: Any, default: T) -> T | None:
    kind = type(default)
    if raw is None or isinstance(raw, kind):
        return raw
    try:
        value = raw == "True" if kind is bool else kind(raw)  # type: ignore[call-arg]
    except ValueError:
        return None
    return None if isinstance(value, float) and not math.isfinite(value) else cast(T, value)


def _is_valid(value: T, valid: Collection[T] | Callable[[T], bool] | None) -> bool:
    if valid is None:
        return True
    return valid(value) if callable(valid) else value in valid


def _tell(key: str, unsaid: Any = None) -> None:
    """The address and the session's memory hold the widget's value."""
    value = st.session_state.get(key)
    _kept()[key] = value
    if value in (None, "", unsaid):
        st.query_params.pop(key, None)
    elif st.query_params.get(key) != _written(value):
        st.query_params[key] = _written(value)


def _written(value: Any) -> str:
    """A value as the address holds it; a whole float without its `.0`."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _kept() -> dict[str, Any]:
    """Values of tied widgets; Streamlit forgets a widget's value when its page is left."""
    return cast(dict[str, Any], st.session_state.setdefault("_kept", {}))


def plain(text: str) -> str:
    """The text with nothing left that Markdown would act on: names come from folders and links."""
    return re.sub(r"([\\`*_{}\[\]()#+\-.!|<>~:$])", r"\\\1", text)
