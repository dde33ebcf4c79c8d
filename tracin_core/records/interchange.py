"""Files in the formats that exist: exclusion lists. Written whole, read line by line, nothing dropped in silence."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import pandas as pd

from tracin_core.data.files import write_json, write_text
from tracin_core.errors import ExclusionError
from tracin_core.scores.exclusions import PairMode

SIMULATED_LINE: Final = "SIMULATED data: made by a simulation, not measured"
PROVENANCE: Final = ".provenance.json"


def provenance_path(path: Path) -> Path:
    """Where what is written into this file says how it came about: `list.txt` has `list.provenance.json` beside it."""
    return path.with_suffix(PROVENANCE)


def provenance_of(listed: Path) -> Path:
    """Where the provenance of this exported list is; lists of earlier versions have it in `list.json`."""
    earlier = listed.with_suffix(".json")
    return earlier if earlier.is_file() and not provenance_path(listed).is_file() else provenance_path(listed)


def exclusion_files(
    folder: Path, stem: str, chosen: pd.DataFrame, provenance: dict[str, Any], *, sample_ids: Sequence[str]
) -> tuple[Path, Path]:
    """`<stem>.txt` (one id per line under a `#` header, which an empty list keeps), `<stem>.provenance.json` (entries and provenance).

    Raises:
        ExclusionError: an id does not belong to the data set, or a line would not be read back as it is; nothing is written.
    """
    known = set(sample_ids)
    ends = [name for name in ("id1", "id2") if name in chosen.columns] or ["id"]
    strangers = sorted({str(value) for name in ends for value in chosen[name]} - known)
    if strangers:
        raise ExclusionError(
            f"'{strangers[0]}' is not among the {len(known)} samples of this data set ({len(strangers)} such ids); compute the run again "
            f"on the data that the list is for."
        )
    text = folder / f"{stem}.txt"
    sidecar = provenance_path(text)
    write_exclusions_txt(text, chosen, header_lines(provenance, len(chosen)))
    write_provenance(sidecar, chosen, provenance)
    return text, sidecar


def write_exclusions_txt(path: Path, chosen: pd.DataFrame, header: Sequence[str]) -> None:
    """The list is on disk, whole: `#` lines, then the column `id`, one per line. `read_exclusions` gives back the same ids.

    Raises:
        ExclusionError: an id would not be read back as it is; nothing is written.
    """
    write_text(path, exclusion_text(chosen["id"].tolist(), header))


def write_provenance(path: Path, chosen: pd.DataFrame, provenance: dict[str, Any]) -> None:
    """The list's entries with all their columns, and how they came about, are on disk as JSON, whole."""
    write_json(path, {**provenance, "entries": chosen.to_dict(orient="records")})


def header_lines(provenance: dict[str, Any], entries: int) -> list[str]:
    """What a reader of the TXT file needs before believing it."""
    rule = ", ".join(f"{name}={value}" for name, value in provenance["rule"].items())
    simulated = [SIMULATED_LINE] if provenance.get("simulated") else []
    return [
        "Exclusion list written by TracIn Studio",
        *simulated,
        f"run {provenance['run']} ({provenance['name']}), digest {provenance['digest'][:8]}, {provenance['created']}",
        f"rule: {rule}",
        f"entries: {entries}",
    ]


def exclusion_text(ids: Sequence[str], header: Sequence[str]) -> str:
    """The list as text. A header entry of several lines (a run's name may hold a line break) stays a comment on every one of them.

    Raises:
        ExclusionError: an id would not be read back as it is.
    """
    for entry in ids:
        if not _survives(entry):
            raise ExclusionError(
                f"The id {entry!r} cannot stand in an exclusion list, where it would be read as something else; rename the recording so "
                f"that its name is one line of text that starts with a letter or digit."
            )
    comments = [f"# {line}" for entry in header for line in entry.splitlines() or [""]]
    return "".join(f"{line}\n" for line in [*comments, *ids])


def _survives(entry: str) -> bool:
    try:
        entry.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return read_lines(entry) == [entry]


def read_exclusions(path: Path) -> list[str]:
    """The ids of a list, in its order; comments and blank lines are left out.

    Raises:
        ExclusionError: the file cannot be read as text.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as failure:
        reason = failure.strerror if isinstance(failure, OSError) else "it is not UTF-8 text"
        raise ExclusionError(
            f"The exclusion list '{path.name}' cannot be read ({reason}); choose a text file with one id per line."
        ) from failure
    return read_lines(text)


def read_lines(text: str) -> list[str]:
    """The ids of a list's text, whichever editor wrote its byte order mark and line ends."""
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    stripped = [line.strip() for line in lines]
    return [line for line in stripped if line and not line.startswith("#")]


@dataclass(frozen=True)
class MatchedExclusions:
    """What a list means for one data set; every line is either matched or unmatched."""

    samples: frozenset[str]
    pairs: frozenset[frozenset[str]]
    matched: tuple[str, ...]
    unmatched: tuple[str, ...]
    elsewhere: tuple[str, ...] = ()  # of the data set, but not of its training side


def training_exclusions(lines: Sequence[str], samples: pd.DataFrame) -> MatchedExclusions:
    """What a list takes away from the training side of these samples (columns id and split), and from no other side.

    Raises:
        ExclusionError: as `known_exclusions`.
    """
    known = known_exclusions(lines, samples["id"].tolist())
    trained = match_exclusions(known.matched, samples.loc[samples["split"] == "train", "id"].tolist())
    return replace(trained, elsewhere=trained.unmatched, unmatched=known.unmatched)


def known_exclusions(lines: Sequence[str], sample_ids: Collection[str]) -> MatchedExclusions:
    """As `match_exclusions`, for a list that is about this data set: some line of it matches, or it is empty.

    Raises:
        ExclusionError: every line is unknown here, or a line can be read in more than one way.
    """
    found = match_exclusions(lines, sample_ids)
    if lines and not found.matched:
        raise ExclusionError(
            f"None of the list's {len(lines)} lines names a sample or pair of this data set, '{lines[0]}' for one; choose the list that "
            f"was made for these data, or train without one."
        )
    return found


def match_exclusions(lines: Sequence[str], sample_ids: Collection[str], pair_mode: PairMode | None = None) -> MatchedExclusions:
    """Each line is a sample id, or the joined id of an unordered pair, or unmatched: reported, never guessed.

    Args:
        pair_mode: how the list was made: ranking_pair lists hold pairs only, the others samples only; None: either.

    Raises:
        ExclusionError: a line can be read in more than one way.
    """
    known = frozenset(sample_ids)
    samples: set[str] = set()
    pairs: set[frozenset[str]] = set()
    matched: list[str] = []
    unmatched: list[str] = []
    for line in lines:
        meaning = _only_reading(line, known, pair_mode)
        (matched if meaning else unmatched).append(line)
        if len(meaning) == 1:
            samples |= meaning
        elif meaning:
            pairs.add(meaning)
    return MatchedExclusions(frozenset(samples), frozenset(pairs), tuple(matched), tuple(unmatched))


def _only_reading(line: str, known: frozenset[str], pair_mode: PairMode | None) -> frozenset[str]:
    """The sample, or the two samples, that the line names; empty if none."""
    readings: set[frozenset[str]] = set()
    if pair_mode != "ranking_pair" and line in known:
        readings.add(frozenset({line}))
    if pair_mode in (None, "ranking_pair"):
        cuts = (place for place, letter in enumerate(line) if letter == "_")
        ends = ((line[:cut], line[cut + 1 :]) for cut in cuts)
        readings |= {frozenset({one, two}) for one, two in ends if one != two and one in known and two in known}
    if len(readings) > 1:
        told = " or ".join(sorted(" with ".join(sorted(reading)) for reading in readings))
        raise ExclusionError(
            f"The line '{line}' can be read in {len(readings)} ways: {told}; rename the recordings so that joined ids are unambiguous."
        )
    return readings.pop() if readings else frozenset()
