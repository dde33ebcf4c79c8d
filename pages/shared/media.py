"""Pictures and sounds of samples at addresses of their own, so that a page carries words only and a browser asks for each file once.

An address names the content, not the sample: what it leads to never changes. The gate stands before it as before every page.
"""

import html
import re
from collections.abc import Iterable
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Final

import streamlit as st
from PIL import Image
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route
from streamlit import config

from pages.shared import session
from tracin_core.records.runs import Run

TYPES: Final = {".png": "image/png", ".wav": "audio/wav"}
DATASET: Final = re.compile(r"[0-9a-f]{6,64}")
FILE: Final = re.compile(r"[0-9a-f]{16,64}\.(?:png|wav)")
KEPT: Final = {"Cache-Control": "private, max-age=31536000, immutable"}
WIDTHS: Final = range(16, 513)  # pixels of a thumbnail


# ---- what a page says of them ---------------------------------------------------------------------------------------------------


def picture_address(run: Run, sample_id: str, *, width: int | None = None) -> str | None:
    """Where the browser finds the sample's picture, perhaps no wider than so many pixels; None if there is none."""
    found = _address(run, run.preview(sample_id).picture)
    return f"{found}?width={width}" if found and width else found


def sound_address(run: Run, sample_id: str) -> str | None:
    """Where the browser finds the sample's sound; None if there is none."""
    return _address(run, run.preview(sample_id).sound)


def _address(run: Run, file: Path) -> str | None:
    if not file.is_file():
        return None
    base = str(config.get_option("server.baseUrlPath") or "").strip("/")
    return f"{f'/{base}' if base else ''}/previews/{run.manifest.dataset}/{file.name}"


def strip(pictures: Iterable[tuple[str, str]], sounds: Iterable[str], *, width: int) -> None:
    """Thumbnails beside each other, and a player for each sound, which asks for it when it is played.

    Args:
        pictures: address and what it shows in words, of each.
        sounds: addresses.
    """
    shown = "".join(
        f'<img src="{html.escape(address)}" alt="{html.escape(words)}" width="{width}" style="border-radius: 4px">'
        for address, words in pictures
    )
    heard = "".join(
        f'<audio controls preload="none" src="{html.escape(address)}" style="width: 100%; height: 32px; display: block"></audio>'
        for address in sounds
    )
    if shown or heard:
        st.html(f'<div style="display: flex; gap: 2px; margin-bottom: 4px">{shown}</div>{heard}')


# ---- the route ------------------------------------------------------------------------------------------------------------------


def preview(request: Request) -> Response:
    """The file of that content, or a thumbnail of it; 404 for everything else."""
    dataset, name = request.path_params["dataset"], request.path_params["name"]
    if not DATASET.fullmatch(dataset) or not FILE.fullmatch(name):
        return _nothing()
    file = Path(session.workspace_path()) / "datasets" / dataset / "previews" / name
    if not file.is_file():
        return _nothing()
    width = request.query_params.get("width", "")
    if width and file.suffix == ".png":
        if not re.fullmatch("[0-9]{1,4}", width) or int(width) not in WIDTHS:
            return _nothing()
        return Response(thumbnail(file, int(width)), headers=KEPT, media_type=TYPES[".png"])
    return FileResponse(file, headers=KEPT, media_type=TYPES[file.suffix])


def _nothing() -> Response:
    return PlainTextResponse("There is nothing here.", 404)


@lru_cache(maxsize=500)
def thumbnail(file: Path, width: int) -> bytes:
    """The picture no wider than this, as PNG."""
    with Image.open(file) as picture:
        picture.thumbnail((width, 4 * width))
        told = BytesIO()
        picture.save(told, "PNG")
    return told.getvalue()


ROUTES: Final[list[BaseRoute]] = [Route("/previews/{dataset}/{name}", preview)]
