"""Who may use a workspace over the network: one secret link per person, of which only a hash is kept.

`access.json` lies beside the catalogue, readable by its owner alone. It is a file of its own, so that a catalogue that is damaged or built
anew opens no door; and once it is there, whoever comes needs a link, also when every link in it has been revoked.
"""

import hashlib
import hmac
import json
import os
import re
import secrets
import time
from collections import OrderedDict, deque
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Final

import filelock

from tracin_core.data.files import write_json
from tracin_core.errors import InputError, NotFoundError, WorkspaceError

FILE: Final = "access.json"
KEY_BYTES: Final = 32
NAME: Final = re.compile(r"[^\W_](?:[\w .'@+-]{0,58}[\w.])?")
LONGEST_KEY: Final = 200  # characters; what is longer is not even hashed


@dataclass(frozen=True)
class Link:
    """One person's way in. The key itself is nowhere but with that person."""

    name: str
    hash: str
    created: float
    revoked: float | None = None

    @property
    def opens(self) -> bool:
        return self.revoked is None


def is_kept(root: Path) -> bool:
    """Links were given out for this workspace, so that nobody gets in without one."""
    return (root / FILE).exists()


def links(root: Path) -> list[Link]:
    """Every link that was given out, also the revoked ones, oldest first.

    Raises:
        WorkspaceError: the file cannot be read; nobody gets in then.
    """
    path = root / FILE
    try:
        known = path.stat()
        return list(_links(path, known.st_ino, known.st_mtime_ns, known.st_size))
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError) as failure:
        raise WorkspaceError(
            f"'{FILE}' cannot be read ({failure}), so nobody gets in; restore it, or move it away and give out new links."
        ) from failure


@lru_cache(maxsize=8)
def _links(path: Path, inode: int, changed: int, size: int) -> tuple[Link, ...]:
    """Read again whenever the file is another one."""
    return tuple(Link(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))["links"])


def add(root: Path, name: str) -> str:
    """This person may come in; the key is returned now and never again.

    Raises:
        InputError: the name cannot be a label, or has a link already.
    """
    if not NAME.fullmatch(name):
        raise InputError(
            f"'{name[:60]}' cannot name a person here; use 1 to 60 letters, digits, spaces and any of . ' @ + - with a letter or digit "
            f"first."
        )
    with _changing(root):
        known = links(root)
        if any(link.opens and link.name.casefold() == name.casefold() for link in known):
            raise InputError(f"'{name}' has a link already; revoke it first: access revoke '{name}'.")
        key = secrets.token_urlsafe(KEY_BYTES)
        _write(root, [*known, Link(name, hash_of(key), time.time())])
    return key


def revoke(root: Path, name: str) -> Link:
    """This person's link opens nothing any more, also not for sessions that are open.

    Raises:
        NotFoundError: nobody of this name has a link that opens.
    """
    with _changing(root):
        known = links(root)
        found = [number for number, link in enumerate(known) if link.opens and link.name.casefold() == name.casefold()]
        if not found:
            holders = ", ".join(link.name for link in known if link.opens) or "nobody"
            raise NotFoundError(f"'{name[:60]}' has no link to revoke; those who have one: {holders}.")
        known[found[0]] = replace(known[found[0]], revoked=time.time())
        _write(root, known)
    return known[found[0]]


def holder(root: Path, key: str) -> str | None:
    """Whose link it is; None if it opens nothing. Every hash is compared, and each in the same time, whatever the key."""
    if not 0 < len(key) <= LONGEST_KEY:
        return None
    told = hash_of(key)
    names = [link.name for link in links(root) if hmac.compare_digest(link.hash, told) and link.opens]
    return names[0] if names else None


def hash_of(key: str) -> str:
    """SHA-256; a key has 256 random bits, so that nothing slower is needed."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def _changing(root: Path) -> filelock.BaseFileLock:
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as failure:
        raise WorkspaceError(f"The workspace '{root}' cannot be made ({failure.strerror}); choose another directory.") from failure
    return filelock.FileLock(root / ".access.lock", timeout=10)


def _write(root: Path, known: list[Link]) -> None:
    write_json(root / FILE, {"links": [asdict(link) for link in known]})
    os.chmod(root / FILE, 0o600)


class Tries:
    """How often each address was wrong lately; the memory is bounded, and whoever was quiet longest is forgotten first."""

    def __init__(self, most: int = 10, seconds: float = 60.0, addresses: int = 4096) -> None:
        self.most, self.seconds, self.addresses = most, seconds, addresses
        self._wrong: OrderedDict[str, deque[float]] = OrderedDict()

    def are_too_many(self, address: str) -> bool:
        """This address was wrong so often within the last seconds that it has to wait."""
        wrong = self._wrong.get(address)
        while wrong and wrong[0] < time.monotonic() - self.seconds:
            wrong.popleft()
        return wrong is not None and len(wrong) >= self.most

    def add(self, address: str) -> None:
        """This address was wrong just now."""
        self._wrong.setdefault(address, deque(maxlen=self.most)).append(time.monotonic())
        self._wrong.move_to_end(address)
        while len(self._wrong) > self.addresses:
            self._wrong.popitem(last=False)
