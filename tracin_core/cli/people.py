"""Verbs of the dashboard: starting it, and who may come in over the network."""

import os
import socket
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final

import typer

from tracin_core.cli.asking import PROJECT, JsonOption, WorkspaceOption, opened
from tracin_core.cli.talk import answer, say
from tracin_core.errors import InputError
from tracin_core.recipe import is_loopback

access = typer.Typer(name="access", help="Who may come in over the network: one link per person.", rich_markup_mode=None)


# A thread per visitor, each with a heap of its own, would hold much that is free; so would one heap with holes the size of a score.
ALLOCATOR: Final = {"MALLOC_ARENA_MAX": "2", "MALLOC_MMAP_THRESHOLD_": "262144", "MALLOC_TRIM_THRESHOLD_": "262144"}


def serve(
    workspace: WorkspaceOption = Path("workspace"),
    host: Annotated[str, typer.Option(help="Another than a loopback address needs access control.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(envvar="TRACIN_PORT", min=1, max=65535)] = 8501,
    with_demo: Annotated[bool, typer.Option("--with-demo", help="Start computing the demo if there is no run yet.")] = False,
) -> None:
    """Start the dashboard on this machine; for others too, once they have links (access add).

    Example: python -m tracin_core serve --port 8501
    """
    if not is_loopback(host):
        require_access_control(workspace, host, port)
    require_free(host, port)
    place = opened(workspace)
    if with_demo and place.runs().empty:
        place.start_demo()
    os.environ["TRACIN_WORKSPACE"] = str(place.root)
    for name, value in ALLOCATOR.items():
        os.environ.setdefault(name, value)
    say(f"TracIn Studio: http://{host}:{port}   (workspace {place.root}; Ctrl-C ends it, computations go on)")
    os.chdir(PROJECT)
    command = [sys.executable, "-m", "streamlit", "run", "app.py", f"--server.address={host}", f"--server.port={port}"]
    os.execv(sys.executable, command)


def require_access_control(workspace: Path, host: str, port: int) -> None:
    """Whoever reaches the dashboard on an address that others reach will be asked who they are. The server itself checks again.

    Raises:
        InputError: nobody would be asked.
    """
    from tracin_core.records import access as people

    if os.environ.get("TRACIN_ACCESS", "").strip().lower() != "oidc" and not people.is_kept(workspace):
        raise InputError(
            f"The dashboard asks nobody who they are and does not listen on '{host}'; use 127.0.0.1 (from elsewhere: ssh -L "
            f"{port}:127.0.0.1:{port}), or give each person a link: python -m tracin_core access add NAME"
        )


def require_free(host: str, port: int) -> None:
    """Nothing listens on this port of this machine.

    Raises:
        InputError: something does, or the port may not be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as failure:
        raise InputError(
            f"Port {port} of {host} cannot be used ({os.strerror(failure.errno or 0)}); end what uses it, or choose another with --port or "
            f"TRACIN_PORT."
        ) from failure


@access.command("add")
def access_add(
    name: Annotated[str, typer.Argument(help="Of the person; it goes with every run and every list that they make.")],
    url: Annotated[str, typer.Option(help="Where people reach the dashboard.")] = "http://127.0.0.1:8501",
    workspace: WorkspaceOption = Path("workspace"),
    as_json: JsonOption = False,
) -> None:
    """Give a person a link. It is shown this once; only a hash of it is kept. From the first link on, nobody gets in without one.

    Example: python -m tracin_core access add Mei --url https://tracin.lab.example
    """
    from tracin_core.records import access as people

    link = f"{url.rstrip('/')}/enter#{people.add(workspace, name)}"
    say(f"{name}'s link, shown only now; whoever has it comes in as {name}:")
    say(link)
    answer({"name": name, "link": link})


@access.command("list")
def access_list(workspace: WorkspaceOption = Path("workspace"), as_json: JsonOption = False) -> None:
    """List who was given a link, and whether it still opens.

    Example: python -m tracin_core access list
    """
    from tracin_core.records import access as people

    known = people.links(workspace)
    for link in known:
        revoked = "" if link.revoked is None else f", revoked {datetime.fromtimestamp(link.revoked):%Y-%m-%d %H:%M}"
        say(f"{link.name}: since {datetime.fromtimestamp(link.created):%Y-%m-%d %H:%M}{revoked}")
    if not known:
        say("Nobody was given a link; the dashboard serves this machine alone.")
    answer({"people": [{"name": link.name, "created": link.created, "revoked": link.revoked} for link in known]})


@access.command("revoke")
def access_revoke(
    name: Annotated[str, typer.Argument(help="Of the person.")],
    workspace: WorkspaceOption = Path("workspace"),
    as_json: JsonOption = False,
) -> None:
    """Make a person's link open nothing, now: open sessions end too.

    Example: python -m tracin_core access revoke Mei
    """
    from tracin_core.records import access as people

    link = people.revoke(workspace, name)
    say(f"{link.name}'s link opens nothing any more")
    answer({"name": link.name, "revoked": link.revoked})
