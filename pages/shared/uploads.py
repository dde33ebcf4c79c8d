"""Files from the browser: the routes that stream them to disk, and the widget that sends them.

    POST   /uploads              an empty upload: {"id": ...}
    PUT    /uploads/<id>?name=   one file of it, as the request's body
    POST   /uploads/<id>         it is complete, and a folder of the workspace
    DELETE /uploads/<id>         it is cancelled

Each request names the session of a page that is open, in a token that only the page was given; the gate has looked at its Host, its
Origin and its person before (`access`). Whatever is refused, and whoever leaves in the middle, cancels the whole upload: it arrives
whole, or not at all.
"""

import asyncio
import hashlib
import hmac
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Final

import streamlit as st
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from streamlit.runtime import Runtime
from streamlit.runtime.scriptrunner import get_script_run_ctx

from pages.shared import session
from pages.shared.i18n import t, template
from pages.shared.session import plain
from tracin_core.errors import InputError
from tracin_core.records import uploads

HERE: Final = Path(__file__).parent
TOKEN: Final = "X-Upload-Token"
SECRET: Final = secrets.token_bytes(32)
SILENCE_SECONDS: Final = 60.0  # without a byte; whoever is slower begins again
DRAINED_BYTES: Final = 64 * 2**20  # read after a refusal, so that a browser that is still sending hears why
LABELS: Final = (
    "files",
    "folder",
    "drop",
    "sending",
    "cancel",
    "cancelled",
    "done",
    "left_out",
    "nothing",
    "too_large",
    "too_many",
    "failed",
)
SHOWN_UPLOADS: Final = 20


@cache
def _inbox(path: str) -> uploads.Inbox:
    return uploads.Inbox(Path(path), uploads.limits())


def inbox() -> uploads.Inbox:
    """The uploads of this server's workspace."""
    return _inbox(session.workspace_path())


# ---- whose request it is --------------------------------------------------------------------------------------------------------


def token() -> str:
    """Proves that a request comes from the page of this session, as long as that is open."""
    context = get_script_run_ctx()
    return "" if context is None else f"{context.session_id}.{_signed(context.session_id)}"


def _signed(session_id: str) -> str:
    return hmac.new(SECRET, session_id.encode(), hashlib.sha256).hexdigest()


def session_of(request: Request) -> str:
    """The session that sent this request.

    Raises:
        UploadRefusedError: none that is open.
    """
    session_id, _, proof = request.headers.get(TOKEN, "").partition(".")
    if not hmac.compare_digest(proof.encode(), _signed(session_id).encode()) or not lives(session_id):
        raise uploads.UploadRefusedError("This page is not connected any more; reload it and begin again.", 403)
    return session_id


def lives(session_id: str) -> bool:
    return Runtime.exists() and Runtime.instance().is_active_session(session_id)


# ---- routes ---------------------------------------------------------------------------------------------------------------------


async def begin(request: Request) -> Response:
    try:
        found = await asyncio.to_thread(inbox().begin, session_of(request), request.scope.get("tracin.person", ""), lives=lives)
    except uploads.UploadRefusedError as refusal:
        return refused(refusal)
    return JSONResponse({"id": found.id}, 201)


async def put(request: Request) -> Response:
    """One file is on the disk; nothing of it was in memory for longer than a piece."""
    try:
        upload = inbox().find(request.path_params["id"], session_of(request))
    except uploads.UploadRefusedError as refusal:
        return refused(refusal)
    try:
        await _store(request, upload)
    except uploads.UploadRefusedError as refusal:
        await asyncio.to_thread(inbox().cancel, upload)
        await drain(request)
        return refused(refusal)
    except BaseException as failure:  # also when the server is told to end
        inbox().cancel(upload)
        if isinstance(failure, ClientDisconnect):
            return Response(status_code=400)  # nobody reads it
        raise
    return JSONResponse({"left_out": upload.left_out}, 201)


async def _store(request: Request, upload: uploads.Upload) -> None:
    length = request.headers.get("content-length", "")
    declared = int(length) if length.isdecimal() else None
    arrival = await asyncio.to_thread(inbox().receive, upload, request.query_params.get("name", ""), declared)
    try:
        async for piece in pieces(request):
            await asyncio.to_thread(arrival.write, piece)
        await asyncio.to_thread(arrival.keep, declared)
    except BaseException:
        arrival.drop()
        raise


async def pieces(request: Request) -> AsyncIterator[bytearray]:
    """The body in pieces that are worth a write.

    Raises:
        UploadRefusedError: nothing came for a while.
    """
    stream, buffer = aiter(request.stream()), bytearray()
    while True:
        try:
            buffer += await asyncio.wait_for(anext(stream), SILENCE_SECONDS)
        except StopAsyncIteration:
            break
        except TimeoutError:
            raise uploads.UploadRefusedError("Nothing arrived for a minute; begin again.", 408) from None
        if len(buffer) >= uploads.PIECE:
            yield buffer
            buffer = bytearray()
    if buffer:
        yield buffer


async def drain(request: Request) -> None:
    """What the browser is still sending has been read and forgotten, up to a limit."""
    count = 0
    with suppress(ClientDisconnect, RuntimeError, TimeoutError):
        async with asyncio.timeout(10):
            async for piece in request.stream():
                count += len(piece)
                if count > DRAINED_BYTES:
                    return


async def finish(request: Request) -> Response:
    try:
        upload = inbox().find(request.path_params["id"], session_of(request))
        kept = await asyncio.to_thread(inbox().finish, upload)
    except uploads.UploadRefusedError as refusal:
        return refused(refusal)
    return JSONResponse({"id": kept.id, "files": kept.files})


async def cancel(request: Request) -> Response:
    try:
        upload = inbox().find(request.path_params["id"], session_of(request))
    except uploads.UploadRefusedError as refusal:
        return refused(refusal)
    await asyncio.to_thread(inbox().cancel, upload)
    return Response(status_code=204)


def refused(refusal: uploads.UploadRefusedError) -> Response:
    return JSONResponse({"error": str(refusal)}, refusal.status)


ROUTES: Final[list[BaseRoute]] = [
    Route("/uploads", begin, methods=["POST"]),
    Route("/uploads/{id}", put, methods=["PUT"]),
    Route("/uploads/{id}", finish, methods=["POST"]),
    Route("/uploads/{id}", cancel, methods=["DELETE"]),
]


# ---- the widget -----------------------------------------------------------------------------------------------------------------


def offer(key: str, on_new: Callable[[], Any] | None = None) -> None:
    """A folded-up place to send files or a folder to this server, and the uploads that are there.

    Args:
        key: tells two of them on one page apart.
        on_new: called once an upload has arrived or is removed, before the page is drawn again; the folder is among the pickers' then.
    """
    limits, there = inbox().limits, _kept(session.workspace_path())
    free = max(limits.total - sum(upload.bytes for upload in there), 0)

    def arrived() -> None:
        _kept.clear()
        name = str((st.session_state[f"upload.{key}"]["arrived"] or {}).get("id", ""))
        if uploads.ID.fullmatch(name) and (inbox().place / name).is_dir():
            st.toast(t("upload.arrived", folder=plain(f"workspace/uploads/{name}")), icon=":material/check:")
            if on_new is not None:
                on_new()

    with st.expander(t("upload.title"), icon=":material/upload:"):
        st.markdown(
            t("upload.intro", kinds=" ".join(uploads.SUFFIXES), file=uploads.in_words(limits.file), free=uploads.in_words(free))
        )
        _component()(
            key=f"upload.{key}",
            data={
                "token": token(),
                "suffixes": list(uploads.SUFFIXES),
                "most": {"file": limits.file, "files": limits.files},
                "most_in_words": uploads.in_words(limits.file),
                "labels": {name: template(f"upload.{name}") for name in LABELS},
            },
            on_arrived_change=arrived,
        )
        for upload in there[:SHOWN_UPLOADS]:
            _one(upload, key, on_new)


def _one(upload: uploads.Kept, key: str, on_new: Callable[[], Any] | None) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        told = t("upload.kept", id=upload.id, files=upload.files, size=uploads.in_words(upload.bytes))
        st.markdown(f":small[{plain(told)}{f' · {plain(upload.who)}' if upload.who else ''}]")
        st.button(t("upload.remove"), key=f"remove.{key}.{upload.id}", on_click=_remove, args=(upload.id, on_new))


def _remove(upload_id: str, on_new: Callable[[], Any] | None) -> None:
    with suppress(InputError):  # somebody else was faster
        uploads.remove(inbox().place, upload_id)
    _kept.clear()
    if on_new is not None:
        on_new()


@st.cache_data(ttl=10, show_spinner=False)
def _kept(path: str) -> list[uploads.Kept]:
    return uploads.kept(Path(path) / "uploads")


@cache
def _component() -> Callable[..., Any]:
    def asset(kind: str) -> str:
        return (HERE / f"upload.{kind}").read_text(encoding="utf-8")

    return st.components.v2.component("upload", html=asset("html"), css=asset("css"), js=asset("js"))
