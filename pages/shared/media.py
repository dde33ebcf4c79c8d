"""Pictures and sounds of samples at addresses of their own, so that a page carries words only and a browser asks for each file once.

An address names the content and when its file was written: what it leads to never changes. The gate stands before it as before every page.
"""

import re
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Final

from PIL import Image
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from pages.shared import session, spectrograms
from tracin_core.errors import TracInError
from tracin_core.records.runs import Run

TYPES: Final = {".png": "image/png", ".wav": "audio/wav"}
DATASET: Final = re.compile(r"[0-9a-f]{6,64}")
FILE: Final = re.compile(r"[0-9a-f]{16,64}\.(?:png|wav)")
KEPT: Final = {"Cache-Control": "private, max-age=31536000, immutable"}
WIDTHS: Final = range(16, 513)  # pixels of a thumbnail


# ---- what a page says of them ---------------------------------------------------------------------------------------------------


def picture_address(run: Run, sample_id: str, *, width: int | None = None, tone: float | None = None) -> str | None:
    """Where the browser finds the sample's picture; None if there is none.

    Args:
        width: no wider than so many pixels.
        tone: in Hz; a recording is drawn around it, in place of the whole picture.
    """
    preview = run.preview(sample_id)
    found = _address(run, preview.picture)
    if found and tone is not None and preview.sound.is_file():
        return f"{found}&tone={tone:g}"
    return f"{found}&width={width}" if found and width else found


def sound_address(run: Run, sample_id: str) -> str | None:
    """Where the browser finds the sample's sound; None if there is none."""
    return _address(run, run.preview(sample_id).sound)


def _address(run: Run, file: Path) -> str | None:
    try:
        drawn = file.stat().st_mtime_ns
    except FileNotFoundError:
        return None
    return f"/previews/{run.manifest.dataset}/{file.name}?v={drawn:x}"


# ---- the route ------------------------------------------------------------------------------------------------------------------


def preview(request: Request) -> Response:
    """The file of that content, or a thumbnail of it; 404 for everything else."""
    dataset, name = request.path_params["dataset"], request.path_params["name"]
    if not DATASET.fullmatch(dataset) or not FILE.fullmatch(name):
        return _nothing()
    file = Path(session.workspace_path()) / "datasets" / dataset / "previews" / name
    if not file.is_file():
        return _nothing()
    tone = request.query_params.get("tone", "")
    if tone and file.suffix == ".png":
        return _around(file.with_suffix(".wav"), tone)
    width = request.query_params.get("width", "")
    if width and file.suffix == ".png":
        if not re.fullmatch("[0-9]{1,4}", width) or int(width) not in WIDTHS:
            return _nothing()
        try:
            return Response(thumbnail(file, file.stat().st_mtime_ns, int(width)), headers=KEPT, media_type=TYPES[".png"])
        except OSError:  # damaged; `verify` names it
            return _nothing()
    return FileResponse(file, headers=KEPT, media_type=TYPES[file.suffix])


def _around(sound: Path, tone: str) -> Response:
    """The recording's picture around a tone."""
    if not re.fullmatch(r"[0-9]{1,6}(?:\.[0-9]{1,3})?", tone):
        return _nothing()
    try:
        return Response(small(sound, sound.stat().st_mtime_ns, float(tone)), headers=KEPT, media_type=TYPES[".png"])
    except (OSError, ValueError, TracInError):
        return _nothing()


@lru_cache(maxsize=500)
def small(sound: Path, written: int, tone: float) -> bytes:
    """`spectrograms.small`, made again where the file is another one."""
    return spectrograms.small(sound, tone)


def _nothing() -> Response:
    return PlainTextResponse("There is nothing here.", 404)


@lru_cache(maxsize=500)
def thumbnail(file: Path, written: int, width: int) -> bytes:
    """The picture no wider than this, as PNG; made again where the file is another one.

    Raises:
        OSError: it is no whole picture.
    """
    with Image.open(file) as picture:
        picture.thumbnail((width, 4 * width))
        told = BytesIO()
        picture.save(told, "PNG")
    return told.getvalue()


ROUTES: Final[list[BaseRoute]] = [Route("/previews/{dataset}/{name}", preview)]
