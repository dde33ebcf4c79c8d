"""What people decided about single pairs and samples: who, when and why. `runs/<id>/verdicts.jsonl`, one line each, never rewritten.

A line is a JSON object whose first field is the CRC32C of the rest. Writers take turns (`flock`), and a verdict is given back as recorded
only after its line is flushed to the disk. A last line without its line break was being written when the machine or the process ended: it
was never confirmed, so readers leave it out and the next writer cuts it off. Anything else that is not as it was sealed is damage.
"""

import errno
import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal, get_args

import crc32c
import numpy as np
import pandas as pd

from tracin_core.data.files import flush_directory
from tracin_core.errors import DamagedBlockError, DiskFullError, ExclusionError
from tracin_core.scores.exclusions import PairMode
from tracin_core.scores.view import View

Verdict = Literal["exclude", "keep", "look_again", "none"]
VERDICTS: Final[tuple[Verdict, ...]] = get_args(Verdict)
FILE: Final = "verdicts.jsonl"
LONGEST: Final = 2_000  # letters of a reason
COLUMNS: Final = ["id", "id1", "id2", "verdict", "who", "when", "why", "rule"]


@dataclass(frozen=True)
class Decision:
    """One verdict on one pair (two samples, in either order) or one sample; `none` takes back what was said before."""

    verdict: Verdict
    samples: tuple[str, ...]
    who: str = ""
    why: str = ""
    rule: str = ""  # what the person was looking at: harm, or suspect
    when: str = ""  # UTC, to the millisecond

    @property
    def about(self) -> str:
        """The same for a pair in either order, and never the same for a pair and a sample."""
        return subject(self.samples)

    @property
    def id(self) -> str:
        return "_".join(self.samples)


def subject(samples: Sequence[str]) -> str:
    """What a verdict is about, as one text."""
    return "\n".join(sorted(samples))


# ---- writing --------------------------------------------------------------------------------------------------------------------


def record(folder: Path, decision: Decision) -> Decision:
    """The verdict, with its time, is on the disk when this returns, whatever happens then.

    Raises:
        ExclusionError: it is no verdict, or not about one sample or two different ones; nothing is written.
        DamagedBlockError: the file is damaged; nothing is written.
        DiskFullError: there is no room.
    """
    _require(decision)
    stamped = Decision(**{**asdict(decision), "when": datetime.now(UTC).isoformat(timespec="milliseconds")})
    path = folder / FILE
    with _turn(path) as handle:
        whole = _whole(os.pread(handle, os.fstat(handle).st_size, 0))
        read_lines(whole, path)
        os.ftruncate(handle, len(whole))
        line = f"{_sealed(stamped)}\n".encode()
        try:
            written = 0
            while written < len(line):
                written += os.pwrite(handle, line[written:], len(whole) + written)
            os.fsync(handle)
        except OSError as failure:
            os.ftruncate(handle, len(whole))
            if failure.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskFullError(
                    f"No room on the disk for a verdict in '{path.name}'; free some space and decide again: earlier ones are kept."
                ) from failure
            raise
    return stamped


@contextmanager
def _turn(path: Path) -> Iterator[int]:
    """The open file, while no other process or thread writes to it."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_size == 0:
            flush_directory(path.parent)  # the file itself survives a power loss
        yield handle
    finally:
        os.close(handle)


def _require(decision: Decision) -> None:
    if decision.verdict not in VERDICTS:
        raise ExclusionError(f"There is no verdict '{decision.verdict}'; choose from {', '.join(VERDICTS)}.")
    if len(decision.samples) not in (1, 2) or len(set(decision.samples)) != len(decision.samples):
        raise ExclusionError(
            f"A verdict is about one sample or two different ones, not about {list(decision.samples)}; choose one."
        )
    if len(decision.why) > LONGEST:
        raise ExclusionError(f"The reason has {len(decision.why):,} letters; keep it within {LONGEST:,}.")


def _sealed(decision: Decision) -> str:
    body = json.dumps(asdict(decision), ensure_ascii=True, separators=(", ", ": "))
    return f'{{"crc32c": "{crc32c.crc32c(body.encode()):08x}", {body[1:]}'


# ---- reading --------------------------------------------------------------------------------------------------------------------


def history(folder: Path) -> list[Decision]:
    """Every confirmed verdict of a run, oldest first.

    Raises:
        DamagedBlockError: a line is not as it was written.
    """
    path = folder / FILE
    return read_lines(_whole(path.read_bytes()), path) if path.is_file() else []


def _whole(raw: bytes) -> bytes:
    """Without the last line that lacks its line break."""
    return raw[: raw.rfind(b"\n") + 1]


def read_lines(raw: bytes, path: Path) -> list[Decision]:
    """The verdicts of these lines."""
    return [_read(line, number, path) for number, line in enumerate(raw.splitlines(), start=1)]


def _read(line: bytes, number: int, path: Path) -> Decision:
    try:
        said: dict[str, Any] = json.loads(line)
        said.pop("crc32c")
        decision = Decision(**{**said, "samples": tuple(said["samples"])})
        if _sealed(decision).encode() == line:
            return decision
    except (ValueError, TypeError, KeyError, AttributeError):
        pass
    raise DamagedBlockError(
        f"Line {number} of '{path.name}' of run '{path.parent.name}' is not as it was written; take that line out, or restore the file "
        f"from a backup: each line is one verdict of a person."
    )


def standing(decisions: Sequence[Decision]) -> pd.DataFrame:
    """The newest verdict on each pair or sample that has one, newest first: id, id1, id2 (empty: a sample), verdict, who, when, why, rule.

    Indexed by what it is about (`subject`).
    """
    newest = {decision.about: decision for decision in decisions}
    last = {decision.about: place for place, decision in enumerate(decisions)}
    kept = sorted((about for about, decision in newest.items() if decision.verdict != "none"), key=last.__getitem__, reverse=True)
    rows = []
    for about in kept:
        decision = newest[about]
        ends = dict(zip(("id1", "id2"), decision.samples if len(decision.samples) == 2 else ("", ""), strict=True))
        told = {name: getattr(decision, name) for name in ("id", "verdict", "who", "when", "why", "rule")}
        rows.append({**told, **ends})
    return pd.DataFrame(rows, columns=COLUMNS, index=pd.Index(kept, name="about", dtype=object))


# ---- over a rule ----------------------------------------------------------------------------------------------------------------


def subjects(listed: pd.DataFrame) -> list[str]:
    """What each entry of a list is about."""
    if "id1" in listed.columns:
        return [subject(ends) for ends in zip(listed["id1"], listed["id2"], strict=True)]
    return [str(name) for name in listed["id"]]


@dataclass(frozen=True)
class Overruled:
    """A list after people had their say: the rule's, without those kept, with those excluded by a person after them."""

    entries: pd.DataFrame  # the rule's columns, and decided_by: rule, or person
    by_rule: int
    added: int  # excluded by a person, not listed by the rule
    kept: int  # listed by the rule, kept by a person
    agreed: int  # listed by the rule, and excluded by a person as well


def overruled(listed: pd.DataFrame, by_hand: pd.DataFrame, verdicts: pd.DataFrame) -> Overruled:
    """The rule's list, plus what people excluded, minus what they keep.

    Args:
        listed: of the rule.
        by_hand: the same columns, of all entries of this kind that people excluded.
        verdicts: as `standing`.
    """
    said = verdicts["verdict"].to_dict()
    of_rule = pd.Series(subjects(listed), index=listed.index, dtype=object)
    kept = of_rule.map(lambda about: said.get(about) == "keep").to_numpy(dtype=bool)
    extra = by_hand[[about not in set(of_rule) and said.get(about) == "exclude" for about in subjects(by_hand)]]
    parts = [listed[~kept].assign(decided_by="rule"), extra.assign(decided_by="person")]
    entries = pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)
    agreed = sum(said.get(about) == "exclude" for about in of_rule)
    return Overruled(entries, len(listed), len(extra), int(kept.sum()), agreed)


def decided(view: View, chosen: pd.DataFrame, verdicts: pd.DataFrame, rule: Mapping[str, Any]) -> Overruled:
    """The harm rule's list after people had their say.

    Args:
        chosen: the rule's list, as `view.exclusions` gives it.
        verdicts: as `standing`.
        rule: threshold, min_occurrences and pair_mode.
    """
    return overruled(chosen, _by_hand(view, chosen, verdicts, rule), verdicts)


def _by_hand(view: View, chosen: pd.DataFrame, verdicts: pd.DataFrame, rule: Mapping[str, Any]) -> pd.DataFrame:
    """What people excluded of the kind that the list is of, with what the rule says of it: no occurrence is 0, and so is its average."""
    wanted = set(verdicts.index[verdicts["verdict"] == "exclude"]) - set(subjects(chosen))
    if not wanted:
        return chosen.head(0)
    threshold, pair_mode = rule["threshold"], rule["pair_mode"]
    lists_pairs = pair_mode == "ranking_pair" and view.train.noun == "pair"
    entries = view.train_pairs if lists_pairs or view.train.noun != "pair" else view.train_samples
    rows = np.flatnonzero([about in wanted for about in subjects(entries)])
    mode: PairMode = "ranking_pair" if lists_pairs else "sample"
    if pair_mode == "full_pair":  # a sample's numbers are those of its chosen pairs
        whole = view.exclusions(threshold, rule["min_occurrences"], None, pair_mode)
        harmful = whole[whole["id"].isin(wanted)]
    else:
        harmful = view.exclusions(threshold, 1, None, mode, among=rows)
    names = [name for name in ("id", "id1", "id2") if name in chosen]
    others = entries.iloc[rows][names]
    others = others[~others["id"].isin(harmful["id"])].assign(occurrences=0, average_influence=0.0, total_harm=0.0)
    others = others.assign(affected_tests=pd.Series([[] for _ in range(len(others))], index=others.index, dtype=object))
    parts = [part[chosen.columns] for part in (harmful, others) if len(part)]
    return pd.concat(parts, ignore_index=True) if parts else chosen.head(0)
