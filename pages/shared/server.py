"""What the web server does besides running pages: headers, the gate, routes for monitoring, and the last word on errors."""

import base64
import hashlib
import os
import re
import sys
from pathlib import Path
from typing import Final

import streamlit
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from streamlit import config
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg

from pages.shared import access, media, session, uploads, widgets
from tracin_core.errors import InputError, TracInError
from tracin_core.records.workspace import readiness

# Not beside a folder named `pages`: Streamlit would run a deep link's page alone, without this script (docs/decisions/0001-asgi.md).
SCRIPT: Final = Path(__file__).with_name("router.py")
FOLDER: Final = bytes(SCRIPT.parent)
SHELL: Final = Path(streamlit.__file__).parent / "static" / "index.html"


def policy() -> str:
    """The content security policy: nothing from outside, and of scripts written into a page only those of Streamlit's own shell.

    Scripts may also be `blob:`, because that is how Streamlit runs a component's script; only a script that runs already can make one.
    Styles may be written into the page: Streamlit's and plotly's scripts make theirs while they run, so that no list of them can be known.
    With fonts, pictures and connections from here alone, a style has nobody to tell what it sees. Fonts are `data:` in Streamlit's sheets,
    pictures `data:` in its tables and `blob:` where plotly saves a chart.
    """
    inline = re.findall(r"<script>(.*?)</script>", SHELL.read_text(encoding="utf-8"), re.DOTALL)
    hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" for script in inline]
    rules = {
        "default-src": ["'self'"],
        "script-src": ["'self'", "blob:", *hashes],
        "style-src": ["'self'", "'unsafe-inline'"],
        "img-src": ["'self'", "data:", "blob:"],
        "media-src": ["'self'", "data:"],  # sounds in the cells of a table
        "font-src": ["'self'", "data:"],
        "connect-src": ["'self'"],
        "worker-src": ["'self'"],
        "frame-src": ["'none'"],
        "object-src": ["'none'"],
        "base-uri": ["'none'"],
        "form-action": ["'self'"],
        "frame-ancestors": ["'none'"],
    }
    return "; ".join(" ".join([name, *sources]) for name, sources in rules.items())


HEADERS: Final = {
    "Content-Security-Policy": policy(),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "Referrer-Policy": "same-origin",  # not no-referrer: a form's Origin would then be null, and look foreign
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class SecurityHeaders:
    """Every HTTP answer carries `HEADERS`."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self.app(scope, receive, send_with_headers if scope["type"] == "http" else send)


class NoPaths:
    """Streamlit tells each session where its script lies; the browser is told its name instead."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_without_paths(message: Message) -> None:
            data = message.get("bytes")
            if message["type"] == "websocket.send" and data and FOLDER in data:
                told = ForwardMsg.FromString(data)
                if told.WhichOneof("type") == "new_session":
                    told.new_session.main_script_path = SCRIPT.name
                    message = {**message, "bytes": told.SerializeToString()}
            await send(message)

        await self.app(scope, receive, send_without_paths if scope["type"] == "websocket" else send)


def require_safety() -> None:
    """The server starts only where it may: an open door, or a limit that cannot be read, ends it with one sentence.

    What uploads left behind that a killed server was receiving is gone.
    """
    try:
        access.require_control()
        require_top()
        uploads.inbox().sweep()
    except TracInError as failure:
        print(f"Error: {failure}", file=sys.stderr)
        raise SystemExit(2) from None


def require_top() -> None:
    """The dashboard lies at the top of its address: its own routes do not move with `server.baseUrlPath`.

    Raises:
        InputError: that is set.
    """
    base = str(config.get_option("server.baseUrlPath") or "").strip("/")
    if base:
        raise InputError(
            f"server.baseUrlPath is '{base}', but pictures, uploads and links of this dashboard lie at the top of its address; leave it "
            f"empty, and give the dashboard a host name or a port of its own."
        )


def healthz(request: Request) -> JSONResponse:
    """200 while the server answers and its workspace can be written to, else 503."""
    writable = os.access(session.workspace_path(), os.W_OK)
    return JSONResponse({"status": "ok" if writable else "workspace not writable"}, status_code=200 if writable else 503)


def readyz(request: Request) -> JSONResponse:
    """200 while work can be taken and done, else 503 with what keeps it: a write to the catalogue or the disk, a worker's silence.

    Nothing is started or made. What is wrong is told without paths: this route needs no login.
    """
    wrong = readiness(Path(session.workspace_path()))
    return JSONResponse({"status": "not ready" if wrong else "ready", **wrong}, status_code=503 if wrong else 200)


def show_error(failure: Exception) -> bool:
    """An error outside a page's frame (in a callback, or in the frame itself) is shown as advice; nothing else is."""
    widgets.failure(failure)
    return True


ROUTES: Final[list[BaseRoute]] = [
    Route("/healthz", healthz),
    Route("/readyz", readyz),
    *access.ROUTES,
    *uploads.ROUTES,
    *media.ROUTES,
]
MIDDLEWARE: Final = [Middleware(SecurityHeaders), Middleware(access.Gate), Middleware(NoPaths)]
