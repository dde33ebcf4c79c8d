"""What the web server does besides running pages: headers, routes for monitoring, and the last word on errors."""

import os
from pathlib import Path
from typing import Final

from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pages.shared import session, widgets
from tracin_core.records.workspace import readiness

# Not beside a folder named `pages`: Streamlit would run a deep link's page alone, without this script (docs/decisions/0001-asgi.md).
SCRIPT: Final = Path(__file__).with_name("router.py")

HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
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


ROUTES: Final[list[BaseRoute]] = [Route("/healthz", healthz), Route("/readyz", readyz)]
MIDDLEWARE: Final = [Middleware(SecurityHeaders)]
