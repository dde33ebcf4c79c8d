"""Saved views: what somebody found worth showing, as the exact address parameters that show it. One file each, under `findings/`.

    findings/<id>.json           a saved view; written whole, so that a crash leaves it as it was or not at all
    findings/removed/<id>.json   one that was removed, and can be brought back

The id is the start of the SHA-256 of what was saved; editing title or note keeps it, so that links keep their meaning.
"""

import os
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

from tracin_core import __version__
from tracin_core.data.files import flush_directory, json_text, read_json, write_json
from tracin_core.errors import InputError, NotFoundError, WorkspaceError
from tracin_core.records.store import digest_of

REMOVED: Final = "removed"
SHORTEST: Final = 8  # hexadecimal digits of an id
TITLE_LENGTH: Final = 200
NOTE_LENGTH: Final = 20_000
AUTHOR_LENGTH: Final = 200
ID: Final = re.compile(r"[0-9a-f]{8,64}")


@dataclass(frozen=True)
class SavedView:
    """A page with its parameters, and what was known of its run when it was saved."""

    id: str
    title: str
    note: str
    author: str
    created: float
    page: str
    parameters: dict[str, str]  # of the address, exactly; the language is the reader's
    run: str  # id; empty where the page was about none
    digest: str  # of the run's kernels and data
    run_name: str
    version: str  # of the product
    edits: tuple[dict[str, Any], ...] = ()  # created, who, and the title and note that were there before
    format: int = 1

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"edits": list(self.edits)}

    def changes(self, digest: str) -> tuple[str, ...]:
        """What is not as it was when the view was saved, its run now having this digest: `scores`, `version`, both, or nothing."""
        known = {"scores": self.digest != digest, "version": self.version != __version__}
        return tuple(name for name, changed in known.items() if changed)


@dataclass(frozen=True)
class Unreadable:
    """A file among the saved views that is none."""

    file: str
    reason: str


class SavedViews:
    """The saved views of a workspace. Every change is on the disk when it returns."""

    def __init__(self, root: Path) -> None:
        self._folder = root / "findings"

    def save(
        self, *, title: str, note: str, author: str, page: str, parameters: Mapping[str, str], run: str, digest: str, run_name: str
    ) -> SavedView:
        """The view is kept, under an id of its own.

        Raises:
            InputError: the title is empty, or a text is longer than is kept.
            DiskFullError: there is no room for it.
        """
        content: dict[str, Any] = {
            "title": _title(title), "note": _text("note", note, NOTE_LENGTH), "author": _text("author", author, AUTHOR_LENGTH),
            "created": time.time(), "page": page, "parameters": dict(sorted(parameters.items())), "run": run, "digest": digest,
            "run_name": run_name, "version": __version__,
        }  # fmt: skip
        whole = digest_of(content)
        id_ = next(whole[:n] for n in range(SHORTEST, len(whole) + 1) if not self._known(whole[:n]))
        saved = SavedView(id_, **content)
        write_json(self._folder / f"{id_}.json", saved.to_dict())
        return saved

    def all(self) -> list[SavedView]:
        """Newest first; files that cannot be read are `unreadable`."""
        return self._read(self._folder)[0]

    def unreadable(self) -> list[Unreadable]:
        """Files among the saved views that are none."""
        return self._read(self._folder)[1]

    def removed(self) -> list[SavedView]:
        """Those that can be brought back, newest first."""
        return self._read(self._folder / REMOVED)[0]

    def get(self, view_id: str) -> SavedView:
        """The saved view with this id.

        Raises:
            NotFoundError: there is none, or it was removed; the message says which.
            WorkspaceError: its file cannot be read.
        """
        known = ID.fullmatch(view_id) is not None
        if known and (self._folder / f"{view_id}.json").is_file():
            return _of_file(self._folder / f"{view_id}.json")
        if known and (self._folder / REMOVED / f"{view_id}.json").is_file():
            raise NotFoundError(f"The saved view '{view_id}' was removed; bring it back on the page of findings.")
        raise NotFoundError(
            f"There is no saved view '{view_id[:80]}' in this workspace; choose one from the list, or ask whoever sent the link."
        )

    def edit(self, view_id: str, *, title: str, note: str, who: str) -> SavedView:
        """Title and note are these; what they were before is kept with it, and its id and link stay.

        Raises:
            NotFoundError, WorkspaceError, InputError: as `get` and `save`.
        """
        old = self.get(view_id)
        before = {"created": time.time(), "who": who, "title": old.title, "note": old.note}
        new = replace(old, title=_title(title), note=_text("note", note, NOTE_LENGTH), edits=(*old.edits, before))
        write_json(self._folder / f"{view_id}.json", new.to_dict())
        return new

    def remove(self, view_id: str) -> None:
        """It is no longer listed; `restore` brings it back.

        Raises:
            NotFoundError: there is none.
        """
        self.get(view_id)
        _move(self._folder / f"{view_id}.json", self._folder / REMOVED / f"{view_id}.json")

    def restore(self, view_id: str) -> SavedView:
        """A removed one is listed again, as it was.

        Raises:
            NotFoundError: it was not removed.
        """
        place = self._folder / REMOVED / f"{view_id}.json"
        if not ID.fullmatch(view_id) or not place.is_file():
            raise NotFoundError(f"No saved view '{view_id[:80]}' was removed here; choose one from the list.")
        _move(place, self._folder / place.name)
        return self.get(view_id)

    def _known(self, view_id: str) -> bool:
        return any((folder / f"{view_id}.json").exists() for folder in (self._folder, self._folder / REMOVED))

    def _read(self, folder: Path) -> tuple[list[SavedView], list[Unreadable]]:
        found, strange = [], []
        for file in sorted(folder.glob("[!.]*.json")):
            try:
                found.append(_of_file(file))
            except WorkspaceError as failure:
                strange.append(Unreadable(file.name, str(failure)))
        return sorted(found, key=lambda saved: (-saved.created, saved.id)), strange


def _of_file(file: Path) -> SavedView:
    """The saved view in the file.

    Raises:
        WorkspaceError: it is none.
    """
    try:
        told = read_json(file)
        saved = SavedView(**{**told, "edits": tuple(told.get("edits", ()))})
        kinds: dict[str, Any] = {"created": (int, float), "parameters": dict, "edits": tuple, "format": int}
        wrong = [f.name for f in fields(saved) if not isinstance(getattr(saved, f.name), kinds.get(f.name, str))]
        strange = [name for name, value in saved.parameters.items() if not (isinstance(name, str) and isinstance(value, str))]
        if wrong or strange or saved.id != file.stem or saved.format != 1:
            raise ValueError(f"its {', '.join([*wrong, *strange]) or 'id or format'} is not what a saved view has")
        json_text(saved.to_dict())
    except (OSError, ValueError, TypeError, AttributeError) as failure:
        raise WorkspaceError(
            f"The saved view in 'findings/{file.name}' cannot be read ({str(failure)[:120]}); mend the file, or take it out of the folder."
        ) from failure
    return saved


def _title(title: str) -> str:
    flat = " ".join(title.split())
    if not flat:
        raise InputError("The saved view has no title; give it one by which others will know it.")
    return _text("title", flat, TITLE_LENGTH)


def _text(name: str, text: str, most: int) -> str:
    if len(text) > most:
        raise InputError(f"The {name} has {len(text):,} characters, and {most:,} are kept; shorten it.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as failure:
        raise InputError(f"The {name} holds half a character at place {failure.start + 1}; type it anew.") from failure
    return text


def _move(old: Path, new: Path) -> None:
    new.parent.mkdir(parents=True, exist_ok=True)
    os.replace(old, new)
    for folder in (new.parent, old.parent):
        flush_directory(folder)
