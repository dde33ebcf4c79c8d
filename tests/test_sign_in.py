"""Signing in lets in listed people only: by the cookie, and with a provider in a real browser."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

import pytest
from conftest import ROOT, is_up, stop_server
from guarded import NEEDS_LOGIN, scope, status, within_seconds
from playwright.sync_api import Page, expect

from pages.shared import access as gate
from tracin_core.errors import InputError

# ---- sign-in --------------------------------------------------------------------------------------------------------------------

SECRETS = {
    "redirect_uri": "https://lab.example/oauth2callback",
    "cookie_secret": "s" * 32,
    "client_id": "c",
    "server_metadata_url": "https://x",
}


@pytest.fixture
def signed(monkeypatch: pytest.MonkeyPatch, workspace_path: Path) -> Callable[..., dict[str, str]]:
    """`signed(email=...)`: the cookie that Streamlit gives to a person who signed in."""
    from streamlit.runtime.secrets import AttrDict, secrets_singleton
    from streamlit.web.server.starlette.starlette_app_utils import create_signed_value

    monkeypatch.setenv("TRACIN_ACCESS", "oidc")
    monkeypatch.setenv("TRACIN_OIDC_ALLOW", "mei@lab.example, @acoustics.example, group:Studio")
    monkeypatch.setattr(secrets_singleton, "load_if_toml_exists", lambda: True)
    monkeypatch.setattr(
        type(secrets_singleton), "get", lambda self, name, default=None: AttrDict(SECRETS) if name == "auth" else default
    )
    monkeypatch.setattr(gate.auth_util, "get_secrets_auth_section", lambda: AttrDict(SECRETS))

    def signed_(secret: str = "s" * 32, **told: Any) -> dict[str, str]:
        value = json.dumps({"is_logged_in": True, "origin": "https://lab.example", **told})
        return {"_streamlit_user": create_signed_value(secret, "_streamlit_user", value).decode()}

    return signed_


def test_only_listed_people_are_let_in_by_sign_in(signed: Callable[..., dict[str, str]]) -> None:
    assert gate.signed_in(signed(email="Mei@lab.example")) == "Mei@lab.example"
    assert gate.signed_in(signed(email="x@acoustics.example", email_verified=True)) == "x@acoustics.example"
    assert gate.signed_in(signed(name="Tom", groups=["studio", "other"])) == "Tom"
    refused = [
        {"email": "other@lab.example"},
        {"email": "mei@lab.example", "email_verified": False},
        {"email": "mei@lab.example", "is_logged_in": False},
        {"email": "mei@lab.example", "origin": "https://evil.example"},
        {"email": "x@evil-acoustics.example"},
        {"email": "@acoustics.example@evil.example"},
        {"name": "group:studio"},
        {"groups": "studio"},
        {"email": ["mei@lab.example"]},
    ]
    assert [gate.signed_in(signed(**told)) for told in refused] == [None] * len(refused)
    assert gate.signed_in(signed(secret="t" * 32, email="mei@lab.example")) is None
    assert gate.signed_in({"_streamlit_user": "nonsense"}) is None


def test_sign_in_guards_every_route_but_its_own(signed: Callable[..., dict[str, str]], configured: Callable[..., None]) -> None:
    configured(hosts=["lab.example"])
    cookie = "; ".join(f"{name}={value}" for name, value in signed(email="mei@lab.example").items())
    stranger = "; ".join(f"{name}={value}" for name, value in signed(email="other@lab.example").items())
    for path in NEEDS_LOGIN:
        answers = [status(scope(path, host="lab.example", cookie=told)) for told in (cookie, stranger, None)]
        assert answers == [None, 403, 403]
    assert [status(scope(path, host="lab.example")) for path in ("/auth/login", "/oauth2callback", "/enter")] == [None] * 3


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"cookie_secret": "short"}, "can be guessed"),
        ({"client_id": ""}, "needs client_id"),
        ({}, "TRACIN_OIDC_ALLOW names nobody"),
    ],
)
def test_sign_in_that_cannot_work_does_not_start(
    signed: Callable[..., dict[str, str]], monkeypatch: pytest.MonkeyPatch, change: dict[str, str], sentence: str
) -> None:
    from streamlit.runtime.secrets import AttrDict

    with monkeypatch.context() as patch:
        patch.setattr(gate.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(InputError, match="needs Authlib"):
            gate.require_oidc()
        patch.setattr(gate.importlib.util, "find_spec", lambda name: object())
        gate.require_oidc()
        patch.setattr(gate.auth_util, "get_secrets_auth_section", lambda: AttrDict({**SECRETS, **change}))
        if not change:
            patch.setenv("TRACIN_OIDC_ALLOW", " , ")
        with pytest.raises(InputError, match=sentence):
            gate.require_oidc()


# ---- a provider to sign in with -------------------------------------------------------------------------------------------------


class Provider(BaseHTTPRequestHandler):
    """An OIDC provider that asks nobody for a password: whoever comes is `person`."""

    person: ClassVar[dict[str, Any]] = {}
    nonces: ClassVar[dict[str, str]] = {}
    key: ClassVar[Any] = None

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, value: Any, code: int = 200, **headers: str) -> None:
        body = json.dumps(value).encode()
        self.send_response(code)
        for name, told in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, told)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        here = f"http://{self.headers['Host']}"
        path, _, query = self.path.partition("?")
        asked = {name: values[0] for name, values in parse_qs(query).items()}
        if path == "/authorize":
            code = f"code{len(self.nonces)}"
            self.nonces[code] = asked["nonce"]
            self.answer({}, 302, Location=f"{asked['redirect_uri']}?code={code}&state={asked['state']}")
        elif path == "/jwks":
            self.answer({"keys": [self.key.as_dict(private=False)]})
        else:
            names = ("authorization_endpoint", "token_endpoint", "jwks_uri")
            routes = dict(zip(names, ("/authorize", "/token", "/jwks"), strict=True))
            algorithms = {"id_token_signing_alg_values_supported": ["RS256"]}
            self.answer({"issuer": here, **{name: here + route for name, route in routes.items()}, **algorithms})

    def do_POST(self) -> None:
        from joserfc import jwt

        told = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        claims = {
            "iss": f"http://{self.headers['Host']}",
            "aud": "tracin",
            "sub": "1",
            "iat": int(time.time()),
            "exp": int(time.time()) + 60,
        }
        claims |= {"nonce": self.nonces[told["code"][0]], **self.person}
        token = jwt.encode({"alg": "RS256", "kid": self.key.kid}, claims, self.key)
        self.answer({"access_token": "a", "token_type": "Bearer", "expires_in": 60, "id_token": token})


@pytest.fixture
def provider() -> Iterator[str]:
    pytest.importorskip("authlib", reason="scripts/setup requirements-oidc.txt installs it")
    from joserfc.jwk import RSAKey

    Provider.key = RSAKey.generate_key(2048, parameters={"kid": "1"})
    with ThreadingHTTPServer(("127.0.0.1", 0), Provider) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_address[1]}"
        listening.shutdown()


@pytest.mark.browser
def test_listed_people_sign_in_with_a_provider_and_others_do_not_get_in(
    provider: str, page: Page, tmp_path: Path, workspace_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    lines = {"redirect_uri": f"{url}/oauth2callback", "cookie_secret": "s" * 40, "client_id": "tracin", "client_secret": "x"}
    lines["server_metadata_url"] = f"{provider}/.well-known/openid-configuration"
    (tmp_path / "secrets.toml").write_text("[auth]\n" + "".join(f'{name} = "{value}"\n' for name, value in lines.items()))
    told = {
        "TRACIN_ACCESS": "oidc",
        "TRACIN_OIDC_ALLOW": "mei@lab.example",
        "STREAMLIT_SECRETS_FILES": str(tmp_path / "secrets.toml"),
    }
    command = [sys.executable, "-m", "streamlit", "run", str(ROOT / "app.py"), f"--server.port={urlsplit(url).port}"]
    with (tmp_path / "log").open("wb") as log:
        environment = {**os.environ, **told, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        assert within_seconds(lambda: is_up(url), 60), (tmp_path / "log").read_text()
        for email, gets_in in (("other@lab.example", False), ("mei@lab.example", True)):
            Provider.person = {"email": email, "email_verified": True}
            answer = page.goto(url)
            assert answer is not None
            assert answer.status == 403
            page.get_by_role("link", name="Sign in").click()
            if gets_in:
                expect(page.get_by_text(f"Here as {email}")).to_be_visible(timeout=60_000)
            else:
                expect(page.get_by_text("open to people on its list")).to_be_visible()
    finally:
        stop_server(process)
