"""Who is let in: the rule about addresses, the gate in front of every route and websocket, and the name of who is there.

`TRACIN_ACCESS` is `links`, `oidc` or `none`. Where it is not set, links are needed once the workspace has given one out.
"""

import getpass
import html
import importlib.util
import ipaddress
import json
import math
import os
import sys
import time
from hashlib import sha256
from pathlib import Path
from string import Template
from typing import Any, Final, Literal, cast
from urllib.parse import parse_qs, urlsplit

import streamlit as st
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import FileResponse, HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from streamlit import auth_util, config
from streamlit.web.server.starlette import starlette_websocket
from streamlit.web.server.starlette.starlette_server_config import USER_COOKIE_NAME

from pages.shared import session
from pages.shared.i18n import t, texts
from tracin_core.errors import InputError, WorkspaceError
from tracin_core.records import access

Control = Literal["", "links", "oidc"]

HERE: Final = Path(__file__).parent
ENTER: Final = "/enter"
LEAVE: Final = "/leave"
COOKIE_SECONDS: Final = 90 * 24 * 3600
FORM_BYTES: Final = 4096
ASKED_SECONDS: Final = 0.2
SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
STREAM: Final = "/_stcore/stream"
FORWARDED: Final = frozenset({"forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-real-ip"})

# Answered without login: whether the server lives, in words that name no file and no person.
OPEN: Final = frozenset({"/healthz", "/readyz", "/_stcore/health"})
ENTRANCE: Final = frozenset({ENTER, LEAVE, "/enter.js"})
SIGN_IN: Final = frozenset({"/auth/login", "/auth/logout", "/oauth2callback"})
# Routes of Streamlit that this product does not use: figures about sessions, a way to run pages without a browser, uploads kept in
# memory, files of first-generation components, a test run of the script.
CLOSED: Final = ("/_stcore/metrics", "/_stcore/agent", "/_stcore/upload_file", "/_stcore/script-health-check", "/component")


# ---- what this server asks for --------------------------------------------------------------------------------------------------


def control() -> Control:
    """What is asked of who comes: nothing, a link, or a sign-in.

    Raises:
        InputError: `TRACIN_ACCESS` is none of the known words.
    """
    asked = os.environ.get("TRACIN_ACCESS", "").strip().lower()
    if asked not in ("", "none", "links", "oidc"):
        raise InputError(f"TRACIN_ACCESS is '{asked[:40]}'; set it to links, oidc or none, or leave it out.")
    if asked == "":
        return "links" if access.is_kept(root()) else ""
    return "" if asked == "none" else cast(Control, asked)


def root() -> Path:
    return Path(session.workspace_path())  # `session` imports this module too: it asks `person` who starts a job


def require_control() -> None:
    """The server only listens where it may: without access control, this machine alone; with it, whoever can be let in.

    Raises:
        InputError: it would be open to others, or closed to everybody; the sentence says what to do.
    """
    asked = control()
    place = whereabouts()
    if place and not asked:
        raise InputError(
            f"The dashboard would be open to whoever reaches {place}, and asks nobody who they are; give each person a link (python -m "
            f"tracin_core access add NAME), or set up sign-in, as docs/deploy.md says, or listen on 127.0.0.1."
        )
    if asked == "links" and not any(link.opens for link in access.links(root())):
        raise InputError("Nobody has a link into this workspace; give one: python -m tracin_core access add NAME")
    if asked == "oidc":
        require_oidc()


def whereabouts() -> str:
    """Where others can reach this server, in words; empty if only this machine can."""
    address = str(config.get_option("server.address") or "")
    if not is_loopback(address):
        return f"'{address}'" if address else "any address of this machine (server.address is empty)"
    names = [name for name in config.get_option("server.allowedHosts") if not is_loopback(name)]
    return f"'{names[0]}' (server.allowedHosts)" if names else ""


def require_oidc() -> None:
    """Signing in can work, and somebody may.

    Raises:
        InputError: what is missing.
    """
    advice = "see docs/deploy.md, 'Sign-in with OIDC'."
    if importlib.util.find_spec("authlib") is None:
        raise InputError(f"TRACIN_ACCESS=oidc needs Authlib; install it (scripts/setup requirements-oidc.txt), {advice}")
    section = auth_util.get_secrets_auth_section()
    missing = [name for name in ("redirect_uri", "cookie_secret", "client_id", "server_metadata_url") if not section.get(name)]
    if missing:
        raise InputError(f"TRACIN_ACCESS=oidc needs {', '.join(missing)} under [auth] in .streamlit/secrets.toml; {advice}")
    if len(str(section["cookie_secret"])) < 32:
        raise InputError(f"cookie_secret in .streamlit/secrets.toml is shorter than 32 characters, so it can be guessed; {advice}")
    if not allowed_people():
        raise InputError(f"TRACIN_OIDC_ALLOW names nobody; list e-mail addresses, @domains or group:NAMES, with commas; {advice}")


def is_loopback(host: str) -> bool:
    """The name or address is this machine's alone."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


# ---- who is there ---------------------------------------------------------------------------------------------------------------


def person() -> str:
    """The name of whoever looks at the page that runs; empty where nobody is asked, also for a session whose link is revoked."""
    return _visitor(dict(st.context.cookies)) or ""


def usual_name() -> str:
    """The name that was given in this session; to begin with that of the account on this machine, where nobody is asked who comes."""
    return str(st.session_state.setdefault("_who", "" if control() else account()))


def account() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a user id without a name, as in some containers
        return ""


def guard() -> str:
    """The name of whoever is there; where one is needed and there is none, the page ends here."""
    if not control():
        return ""
    name = person()
    if not name:
        st.error(t("access.closed.links" if control() == "links" else "access.closed.oidc"), icon=":material/lock:")
        st.stop()
    return name


def _visitor(cookies: dict[str, str]) -> str | None:
    """The name behind these cookies; None if they open nothing, "" where nobody is asked."""
    asked = control()
    if asked == "links":
        return access.holder(root(), cookies.get(cookie_name(), ""))
    return signed_in(cookies) if asked == "oidc" else ""


def cookie_name() -> str:
    """One cookie per workspace: servers on one machine share their cookies, whatever the port."""
    return f"tracin_{sha256(str(root()).encode()).hexdigest()[:8]}"


def signed_in(cookies: dict[str, str]) -> str | None:
    """The e-mail address (else the name) of a person who has signed in and is on the list; None for anyone else."""
    try:
        raw = starlette_websocket._get_signed_cookie_with_chunks(cookies, USER_COOKIE_NAME)
        told = json.loads(raw) if raw else {}
    except (ValueError, TypeError, KeyError):
        return None
    if not told.get("is_logged_in") or told.get("origin") != auth_util.get_origin_from_redirect_uri() or not is_allowed(told):
        return None
    return str(told.get("email") or told.get("preferred_username") or told.get("name") or told.get("sub"))


def allowed_people() -> list[str]:
    return [entry.strip().casefold() for entry in os.environ.get("TRACIN_OIDC_ALLOW", "").split(",") if entry.strip()]


def is_allowed(told: dict[str, Any]) -> bool:
    """The signed-in person is listed by address, domain or group. An address that the provider says it did not check is not one."""
    email = str(told.get("email") or "").casefold() if told.get("email_verified", True) in (True, "true") else ""
    groups = told.get("groups")
    known = {email, f"@{email.rpartition('@')[2]}"} if "@" in email else set()
    known |= {f"group:{name}".casefold() for name in groups if isinstance(name, str)} if isinstance(groups, list) else set()
    return not known.isdisjoint(allowed_people())


# ---- the gate -------------------------------------------------------------------------------------------------------------------


class Gate:
    """Every request and every message of a websocket comes from the right address, and from somebody who is let in.

    What it refuses gets no further: no page runs, no callback, no upload. It asks again for each message that a browser sends on an open
    websocket, so that a revoked link ends a session at its next rerun, and every `ASKED_SECONDS` of what is sent to it: a page is a
    hundred messages.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.tries = access.Tries()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        scope["tracin.tries"] = self.tries
        try:
            refusal = self.refusal(scope)
        except (InputError, WorkspaceError) as failure:  # a server whose rules cannot be read lets nobody in
            print(f"Error: {failure}", file=sys.stderr)
            refusal = PlainTextResponse("Nobody can be let in at the moment; the server's log says why.", 503)
        if refusal is not None:
            await _refuse(refusal, scope, receive, send)
        elif scope["type"] == "websocket":
            await self._watched(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def refusal(self, scope: Scope) -> Response | None:
        """Why this request goes no further; None if it may."""
        path = str(scope["path"])
        if path.startswith(CLOSED) or (scope["type"] == "websocket" and path != STREAM):
            return PlainTextResponse("There is nothing here.", 404)
        foreign = foreign_address(scope)
        if foreign:
            return PlainTextResponse(foreign, 403)
        asked = control()
        if not asked and comes_from_elsewhere(scope):
            return PlainTextResponse(texts("en")["access.elsewhere"], 403)
        if path in SIGN_IN:
            return None if asked == "oidc" else PlainTextResponse("There is nothing here.", 404)
        if path in OPEN or path in ENTRANCE or not asked:
            return None
        return self._stranger(scope, asked)

    def _stranger(self, scope: Scope, asked: Control) -> Response | None:
        """What somebody is told who shows no link, or a wrong one; None for a person who is let in."""
        request = HTTPConnection(scope)
        name = _visitor(request.cookies)
        if name:
            scope["tracin.person"] = name
            return None
        if asked == "links" and cookie_name() in request.cookies:
            if self.tries.are_too_many(address_of(scope)):
                return too_many()
            self.tries.add(address_of(scope))
        if not wants_a_page(request):
            return PlainTextResponse("Come in first.", 403)
        # A cookie that is SameSite=Strict does not come along from a link on another site; it does with the page's own reload.
        again = request.headers.get("sec-fetch-site") in ("cross-site", "same-site")
        return front_page(request, f"access.closed.{asked}", 403, again=again)

    async def _watched(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The websocket, until who opened it is not let in any more."""
        cookies = HTTPConnection(scope).cookies
        ended, asked = False, -math.inf

        def is_still_let_in() -> bool:
            nonlocal asked
            asked = time.monotonic()
            return is_let_in(scope, cookies)

        async def end() -> None:
            nonlocal ended
            if not ended:
                ended = True
                await send({"type": "websocket.close", "code": 1008, "reason": "no longer let in"})

        async def receive_while_let_in() -> Message:
            message = await receive()
            if message["type"] == "websocket.receive" and not is_still_let_in():
                await end()
                return {"type": "websocket.disconnect", "code": 1008}
            return message

        async def send_while_let_in(message: Message) -> None:
            if message["type"] == "websocket.send" and time.monotonic() > asked + ASKED_SECONDS and not is_still_let_in():
                await end()
            if not ended:
                await send(message)

        await self.app(scope, receive_while_let_in, send_while_let_in)


def is_let_in(scope: Scope, cookies: dict[str, str]) -> bool:
    """Who opened this websocket may still use it."""
    try:
        return bool(_visitor(cookies)) or (not control() and not comes_from_elsewhere(scope))
    except (InputError, WorkspaceError):
        return False


def foreign_address(scope: Scope) -> str:
    """Why the request's Host or Origin is not this server's, in one sentence; empty if both are.

    A page of another site can send requests here, and through a name of its own that it points here it could even read the answers.
    """
    headers = Headers(scope=scope)
    host = headers.get("host", "")
    if not is_own_name(hostname_of(host), scope):
        return "This server does not go by that name; use its own address, or have the name added to server.allowedHosts."
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
        return "This request comes from another site, and is refused."
    if scope["type"] == "http" and scope["method"] not in SAFE:
        site = headers.get("sec-fetch-site", "same-origin" if origin else "")
        if site != "same-origin":
            return "This request does not say that it comes from this site's own pages, and is refused."
    return ""


def hostname_of(host: str) -> str:
    """The name in a Host header, without its port; empty if it is none."""
    try:
        parts = urlsplit(f"//{host}")
        name = parts.hostname or ""
        _ = parts.port
    except ValueError:
        return ""
    return "" if "@" in host or parts.path or parts.query or parts.fragment else name.rstrip(".")


def is_own_name(name: str, scope: Scope) -> bool:
    """This server goes by that name: a loopback one, one that the configuration allows, or the address that was connected to."""
    if not name:
        return False
    listed = config.get_option("server.allowedHosts")
    return is_loopback(name) or (bool(listed) and starlette_websocket.is_host_allowed(name)) or name == own_address(scope)


def own_address(scope: Scope) -> str:
    """The address of this machine that the request was sent to; empty if the server does not tell."""
    return str((scope.get("server") or ("", None))[0])


def comes_from_elsewhere(scope: Scope) -> bool:
    """The request may not be from this machine: one of its addresses is another one's, or a proxy says that it passed it on."""
    headers = Headers(scope=scope)
    addresses = [own_address(scope), str((scope.get("client") or ("", None))[0]), hostname_of(headers.get("host", ""))]
    return any(address and not is_loopback(address) for address in addresses) or not FORWARDED.isdisjoint(headers)


def address_of(scope: Scope) -> str:
    """Who is counted as one when tries are: an address, or the network of an IPv6 one."""
    host = str((scope.get("client") or ("", None))[0])
    try:
        known = ipaddress.ip_address(host)
    except ValueError:
        return host
    return str(ipaddress.ip_network(f"{known}/64", strict=False)) if known.version == 6 else host


def wants_a_page(request: HTTPConnection) -> bool:
    return request.scope["type"] == "http" and request.scope["method"] == "GET" and "text/html" in request.headers.get("accept", "")


async def _refuse(answer: Response, scope: Scope, receive: Receive, send: Send) -> None:
    """The refusal is the answer; to a websocket, before it is opened, as HTTP where the server can."""
    if scope["type"] == "http":
        await answer(scope, receive, send)
        return
    await receive()
    await send({"type": "websocket.close", "code": 1008, "reason": "refused"})


# ---- the entrance ---------------------------------------------------------------------------------------------------------------


def front_page(request: HTTPConnection, key: str, status: int = 200, *, again: bool = False) -> Response:
    """A page with one sentence, in the visitor's language, that needs nobody to be let in.

    Args:
        again: it loads the address once more by itself.
    """
    language = "zh-TW" if request.headers.get("accept-language", "").lower().startswith("zh") else "en"
    words = texts(language)
    button = f'<p><a href="{ENTER}">{html.escape(words["access.sign_in"])}</a></p>' if key == "access.closed.oidc" else ""
    refresh = '<meta http-equiv="refresh" content="0">' if again else ""
    page = Template((HERE / "access.html").read_text(encoding="utf-8")).substitute(
        language=language, refresh=refresh, text=html.escape(words[key]), button=button, wait=html.escape(words["access.entering"])
    )
    return HTMLResponse(page, status, headers={"Cache-Control": "no-store"})


def too_many() -> Response:
    return PlainTextResponse("Too many wrong tries; wait a minute and try again.", 429, headers={"Retry-After": "60"})


async def enter(request: Request) -> Response:
    """GET: the page that hands a link's key over, or the way to sign in. POST: the key opens, and is in a cookie from then on.

    The key stands behind the `#` of the link, which browsers send to no server: it is in no log on the way. The page's script takes it out
    of the address bar before anything else and posts it.
    """
    asked = control()
    if asked == "oidc":
        provider = auth_util.encode_provider_token("default")
        return RedirectResponse(f"/auth/login?provider={provider}", 303, headers={"Cache-Control": "no-store"})
    if not asked:
        return RedirectResponse("/", 303)
    if request.method == "GET":
        return front_page(request, "access.closed.links")
    tries, address = request.scope["tracin.tries"], address_of(request.scope)
    if tries.are_too_many(address):
        return too_many()
    key = await posted_key(request)
    if access.holder(root(), key) is None:
        tries.add(address)
        return front_page(request, "access.wrong", 403)
    answer = RedirectResponse("/", 303, headers={"Cache-Control": "no-store"})
    answer.set_cookie(
        cookie_name(), key, COOKIE_SECONDS, httponly=True, samesite="strict", secure=request.scope["scheme"] == "https", path="/"
    )
    return answer


async def posted_key(request: Request) -> str:
    """What the form says; empty if it is no form of ours."""
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > FORM_BYTES:
                return ""
    except ClientDisconnect:
        return ""
    return parse_qs(bytes(body).decode("ascii", "replace")).get("key", [""])[0]


def leave(request: Request) -> Response:
    """The cookie is gone; the link itself still opens."""
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return PlainTextResponse("This request comes from another site, and is refused.", 403)
    answer: Response = RedirectResponse("/auth/logout" if control() == "oidc" else ENTER, 303)
    answer.delete_cookie(cookie_name(), path="/")
    return answer


def enter_script(request: Request) -> Response:
    return FileResponse(HERE / "access.js", media_type="text/javascript")


ROUTES: Final[list[BaseRoute]] = [
    Route(ENTER, enter, methods=["GET", "POST"]),
    Route(LEAVE, leave),
    Route("/enter.js", enter_script),
]
