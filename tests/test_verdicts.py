"""What people decided outlives everything that happens to the process, and overrides the rule by a plain sum of sets."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from tracin_core.errors import DamagedBlockError, ExclusionError
from tracin_core.records.verdicts import FILE, VERDICTS, Decision, history, overruled, record, standing, subject, subjects

WRITER = """
import sys
from pathlib import Path
from tracin_core.records.verdicts import Decision, record
for number in range(int(sys.argv[3])):
    done = record(Path(sys.argv[1]), Decision("keep", (f"{sys.argv[2]}{number}",), who=sys.argv[2], why="\\n" * number))
    print(done.id, flush=True)
"""


def writer(folder: Path, who: str, count: int) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", WRITER, str(folder), who, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


TEXTS = st.text(max_size=20)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
DECISIONS = st.builds(
    Decision,
    st.sampled_from(VERDICTS),
    st.lists(NAMES, min_size=1, max_size=2, unique=True).map(tuple),
    who=TEXTS,
    why=TEXTS,
    rule=st.sampled_from(["", "harm", "suspect"]),
)


@settings(deadline=None, max_examples=25)
@given(decisions=st.lists(DECISIONS, max_size=5))
def test_what_was_recorded_is_read_back_in_its_order(tmp_path_factory: pytest.TempPathFactory, decisions: list[Decision]) -> None:
    folder = tmp_path_factory.mktemp("run")
    stamped = [record(folder, decision) for decision in decisions]
    assert history(folder) == stamped
    assert [replace(decision, when="") for decision in stamped] == decisions
    assert [decision.when for decision in stamped] == sorted(decision.when for decision in stamped)


def test_the_newest_verdict_stands_and_a_pair_has_one_in_either_order() -> None:
    said = [
        Decision("exclude", ("a", "b"), who="Ada"),
        Decision("keep", ("a_b",)),
        Decision("keep", ("b", "a"), who="Lin", why="sounds fine"),
        Decision("exclude", ("c",)),
        Decision("none", ("c",)),
    ]
    stands = standing(said)
    assert stands.index.tolist() == [subject(["a", "b"]), "a_b"]
    assert stands[["id", "id1", "id2", "verdict", "who", "why"]].to_numpy().tolist() == [
        ["b_a", "b", "a", "keep", "Lin", "sounds fine"],
        ["a_b", "", "", "keep", "", ""],
    ]
    assert standing([]).empty


def test_writers_take_turns(tmp_path: Path) -> None:
    writers = {who: writer(tmp_path, who, 12) for who in ("ada", "lin", "mei")}
    for process in writers.values():
        assert process.wait(60) == 0
    written = history(tmp_path)
    assert len(written) == 36
    for who in writers:
        assert [decision.id for decision in written if decision.who == who] == [f"{who}{number}" for number in range(12)]


def test_killed_at_any_instant_what_was_confirmed_is_there(tmp_path: Path) -> None:
    """The kill falls wherever the writer is; what it had said was recorded is there, and the next writer goes on."""
    confirmed: list[str] = []
    for number in range(4):
        process = writer(tmp_path, f"w{number}_", 10_000)
        assert process.stdout is not None
        seen = [process.stdout.readline().strip() for _ in range(3 + 2 * number)]
        process.send_signal(signal.SIGKILL)
        seen += process.stdout.read().split()
        process.wait(10)
        confirmed += seen
        there = [decision.id for decision in history(tmp_path)]
        assert set(confirmed) <= set(there)
        assert len(there) == len(set(there)) <= len(confirmed) + number + 1
    assert len(confirmed) > 20


@pytest.mark.parametrize("left", [1, 20, -1])
def test_a_line_that_was_being_written_was_never_confirmed(tmp_path: Path, left: int) -> None:
    record(tmp_path, Decision("exclude", ("a",), why="first"))
    whole = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(whole + whole[:left])
    assert [decision.why for decision in history(tmp_path)] == ["first"]
    record(tmp_path, Decision("keep", ("b",), why="second"))
    assert [decision.why for decision in history(tmp_path)] == ["first", "second"]


def test_no_changed_bit_goes_unnoticed(tmp_path: Path) -> None:
    for name in ("a", "b"):
        record(tmp_path, Decision("exclude", (name,), who="Ada", why="錄音有雜訊"))
    path = tmp_path / FILE
    whole = path.read_bytes()
    generator = np.random.default_rng(3)
    for place in generator.choice(len(whole) - 1, size=150, replace=False):  # the last byte is the break that confirms
        changed = bytearray(whole)
        changed[place] ^= 1 << generator.integers(8)
        path.write_bytes(changed)
        with pytest.raises(DamagedBlockError, match=r"Line \d+ of 'verdicts.jsonl'"):
            history(tmp_path)
        with pytest.raises(DamagedBlockError):
            record(tmp_path, Decision("keep", ("c",)))
        assert path.read_bytes() == bytes(changed)


@pytest.mark.parametrize(
    ("decision", "told"),
    [
        (Decision("perhaps", ("a",)), "no verdict 'perhaps'"),  # type: ignore[arg-type]
        (Decision("keep", ()), "one sample or two"),
        (Decision("keep", ("a", "a")), "one sample or two"),
        (Decision("keep", ("a",), why="x" * 3000), "3,000 letters"),
    ],
)
def test_what_is_no_verdict_is_refused_and_leaves_nothing(tmp_path: Path, decision: Decision, told: str) -> None:
    with pytest.raises(ExclusionError, match=told):
        record(tmp_path, decision)
    assert not (tmp_path / FILE).exists()


# ---- over a rule ----------------------------------------------------------------------------------------------------------------


def entries(names: list[str]) -> pd.DataFrame:
    ends: list[Any] = [name.split("-") for name in names]
    return pd.DataFrame(
        {
            "id": names,
            "id1": pd.Series([a for a, _ in ends], dtype=object),
            "id2": pd.Series([b for _, b in ends], dtype=object),
            "occurrences": np.arange(len(names), dtype=np.int64),
        }
    )


PAIRS = st.lists(st.sampled_from(["a-b", "a-c", "b-c", "c-d", "d-a"]), unique=True)


@given(listed=PAIRS, excluded=PAIRS, kept=PAIRS)
def test_the_final_list_is_the_rules_plus_excluded_minus_kept(listed: list[str], excluded: list[str], kept: list[str]) -> None:
    excluded = [name for name in excluded if name not in kept]
    said = [Decision("exclude", tuple(name.split("-"))) for name in excluded]
    said += [Decision("keep", tuple(name.split("-")[::-1])) for name in kept]
    final = overruled(entries(listed), entries(excluded), standing(said))
    expected = [name for name in listed if name not in kept] + [name for name in excluded if name not in listed]
    assert final.entries["id"].tolist() == expected
    assert final.entries["decided_by"].tolist() == ["rule" if name in listed else "person" for name in expected]
    assert final.by_rule + final.added - final.kept == len(expected)
    assert final.agreed == len(set(listed) & set(excluded))
    assert final.entries["occurrences"].dtype == np.int64
    assert subjects(entries(["a-b"])) == subjects(entries(["b-a"])) != ["a_b"]
