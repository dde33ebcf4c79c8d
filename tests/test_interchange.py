"""Exclusion lists: written whole, read back as they were, matched without guessing."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracin_core.errors import DiskFullError, ExclusionError
from tracin_core.records.interchange import (
    exclusion_files,
    exclusion_text,
    match_exclusions,
    read_exclusions,
    read_lines,
    write_exclusions_txt,
    write_provenance,
)

KNOWN = ["box_deg000_1000hz_04", "box_deg036_1000hz_04", "metal_big_deg036_500hz_1"]
NAMES = st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
PROVENANCE: dict[str, Any] = {
    "run": "1a2b",
    "name": "first try",
    "digest": "0123456789abcdef",
    "created": "2025-03-01T10:00:00+01:00",
    "rule": {"threshold": -5.0, "min_occurrences": 3},
    "simulated": True,
}


def pair_list(count: int = 1) -> pd.DataFrame:
    rows = [
        {
            "id": f"{KNOWN[0]}_{KNOWN[1]}",
            "id1": KNOWN[0],
            "id2": KNOWN[1],
            "occurrences": 3,
            "average_influence": -7.25,
            "affected_tests": ["t1_t2"],
        }
    ]
    return pd.DataFrame(rows[:count], columns=list(rows[0]))


@settings(deadline=None, max_examples=60)
@given(ids=st.lists(NAMES, max_size=6), header=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), max_size=3))
def test_a_list_reads_back_as_it_was_written_or_is_refused(
    ids: list[str], header: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Any ids, any header (line breaks in it included): the same ids in the same order, or a refusal and no file."""
    path = tmp_path_factory.mktemp("list") / "list.txt"
    try:
        write_exclusions_txt(path, pd.DataFrame({"id": ids}, dtype=object), header)
    except ExclusionError:
        assert not path.exists()
        assert any(read_lines(entry) != [entry] for entry in ids)
        return
    assert read_exclusions(path) == ids


@pytest.mark.parametrize("bad", ["#box", "box\nmetal", "box\rmetal", " box", "box ", "", "\ufeffbox", "box\udcff"])
def test_an_id_that_would_be_read_as_something_else_is_refused(bad: str) -> None:
    with pytest.raises(ExclusionError, match="cannot stand in an exclusion list"):
        exclusion_text(["good", bad], ["header"])


def test_comments_blank_lines_and_foreign_line_ends_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes("\ufeff# made elsewhere\r\n\r\n  a_1  \r\n\t# note\r\nb_2\n#c_3\n\nd_4 # not a comment".encode())
    assert read_exclusions(path) == ["a_1", "b_2", "d_4 # not a comment"]


def test_a_header_with_line_breaks_stays_a_comment() -> None:
    """A run's name may hold a line break; the rest of it must not become an id."""
    assert exclusion_text(["a"], ["run 1 (first\nbox_deg000\r\ntry)", ""]) == "# run 1 (first\n# box_deg000\n# try)\n# \na\n"


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", None])
def test_a_file_that_is_no_text_is_refused_by_name(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ExclusionError, match=r"'list\.txt' cannot be read"):
        read_exclusions(path)


@pytest.mark.parametrize("count", [0, 1])
def test_both_files_say_where_the_list_comes_from(count: int, tmp_path: Path) -> None:
    """An empty list keeps its header and its provenance; simulated data is named as such in the text."""
    text, sidecar = exclusion_files(tmp_path, "box_list", pair_list(count), PROVENANCE, sample_ids=KNOWN)
    assert (text.name, sidecar.name) == ("box_list.txt", "box_list.provenance.json")
    comments = [line for line in text.read_text().splitlines() if line.startswith("#")]
    assert "# SIMULATED data: made by a simulation, not measured" in comments
    assert "# rule: threshold=-5.0, min_occurrences=3" in comments
    assert f"# entries: {count}" in comments
    assert read_exclusions(text) == [f"{KNOWN[0]}_{KNOWN[1]}"] * count
    written = json.loads(sidecar.read_text())
    assert {name: written[name] for name in PROVENANCE} == PROVENANCE
    assert written["entries"] == pair_list(count).to_dict(orient="records")


def test_an_id_of_other_data_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(ExclusionError, match=f"'{KNOWN[1]}' is not among the 1 samples"):
        exclusion_files(tmp_path, "box_list", pair_list(), PROVENANCE, sample_ids=KNOWN[:1])
    with pytest.raises(ExclusionError, match="'stranger'"):
        exclusion_files(tmp_path, "box_list", pd.DataFrame({"id": ["stranger"]}), PROVENANCE, sample_ids=KNOWN)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("write", [write_exclusions_txt, write_provenance])
def test_a_write_that_fails_leaves_the_old_file(write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk at the last moment: the earlier list is whole, and no partial file lies about."""
    path = tmp_path / "list"
    path.write_text("earlier")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(DiskFullError, match="No room on the disk for 'list'"):
        write(path, pair_list(), {} if write is write_provenance else ["header"])
    assert [(entry.name, entry.read_text()) for entry in tmp_path.iterdir()] == [("list", "earlier")]


def test_lines_are_samples_pairs_in_either_order_or_unmatched() -> None:
    one, two, three = KNOWN
    lines = [one, f"{two}_{three}", f"{three}_{two}", "box_deg000_1000hz_99", f"{one}_nobody", f"{one}_{one}"]
    found = match_exclusions(lines, KNOWN)
    assert found.samples == {one}
    assert found.pairs == {frozenset({two, three})}
    assert found.matched == tuple(lines[:3])
    assert found.unmatched == tuple(lines[3:])


@pytest.mark.parametrize(
    ("mode", "samples", "pairs"), [("ranking_pair", 0, 1), ("full_pair", 1, 0), ("sample", 1, 0), (None, 1, 1)]
)
def test_a_mode_reads_only_its_own_kind_of_line(mode: Any, samples: int, pairs: int) -> None:
    found = match_exclusions([KNOWN[0], f"{KNOWN[1]}_{KNOWN[2]}"], KNOWN, mode)
    assert (len(found.samples), len(found.pairs), len(found.unmatched)) == (samples, pairs, 2 - samples - pairs)


@pytest.mark.parametrize(
    ("line", "known", "told"),
    [
        ("a_b_c", ["a", "b_c", "a_b", "c"], "a with b_c or a_b with c"),
        ("a_b", ["a", "b", "a_b"], "a with b or a_b"),
    ],
)
def test_a_line_with_two_readings_is_refused_by_name(line: str, known: list[str], told: str) -> None:
    with pytest.raises(ExclusionError, match=f"'{line}' can be read in 2 ways: {told}"):
        match_exclusions([line], known)


def test_two_splits_that_name_the_same_unordered_pair_are_one_reading() -> None:
    assert match_exclusions(["x_x_x"], ["x", "x_x"]).pairs == {frozenset({"x", "x_x"})}


def test_a_mode_decides_between_a_sample_and_a_pair() -> None:
    assert match_exclusions(["a_b"], ["a", "b", "a_b"], "sample").samples == {"a_b"}
    assert match_exclusions(["a_b"], ["a", "b", "a_b"], "ranking_pair").pairs == {frozenset({"a", "b"})}
