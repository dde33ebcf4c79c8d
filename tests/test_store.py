"""Blocks are whole, checked, and never wrong."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracin_core.data.files import write_whole
from tracin_core.errors import DamagedBlockError, NonFiniteError
from tracin_core.records.store import BlockKey, BlockStore, digest_of


def block(rows: int = 3, columns: int = 4, layers: int = 2) -> tuple[BlockKey, np.ndarray]:
    values = np.random.default_rng(0).normal(size=(layers, rows, columns)).astype(np.float32)
    return BlockKey("g" * 8, "left", "right", values.shape), values


def test_a_block_reads_as_it_was_written_by_anyone(tmp_path: Path) -> None:
    key, values = block()
    BlockStore(tmp_path).write(key, values)
    read = BlockStore(tmp_path).read(key)
    np.testing.assert_array_equal(read, values)
    assert not read.flags.writeable
    assert np.fromfile(tmp_path / key.group / key.file, dtype="<f4", count=values.size).tolist() == values.reshape(-1).tolist()


@settings(max_examples=60, deadline=None)
@given(bit=st.integers(0, (3 * 4 * 2 * 4 + 4) * 8 - 1))
def test_every_flipped_bit_is_reported_with_the_blocks_name(bit: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("store")
    key, values = block()
    store = BlockStore(folder)
    store.write(key, values)
    path = folder / key.group / key.file
    raw = bytearray(path.read_bytes())
    raw[bit // 8] ^= 1 << (bit % 8)
    path.write_bytes(raw)
    with pytest.raises(DamagedBlockError, match=key.left):
        BlockStore(folder).read(key)
    assert BlockStore(folder).missing([key]) == [key]
    assert store.missing([key]) == [key]  # also where it was whole a moment ago


def test_a_truncated_block_is_reported_and_counts_as_missing(tmp_path: Path) -> None:
    key, values = block()
    store = BlockStore(tmp_path)
    store.write(key, values)
    path = store.path(key)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedBlockError, match="bytes instead of"):
        BlockStore(tmp_path).read(key)


def test_values_that_are_not_finite_are_refused_and_leave_no_file(tmp_path: Path) -> None:
    key, values = block()
    values[1, 2, 3] = np.nan
    with pytest.raises(NonFiniteError, match=r"nan at \(1, 2, 3\)"):
        BlockStore(tmp_path).write(key, values)
    assert not (tmp_path / key.group).exists()


def test_a_failed_write_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, [b"old"])

    def pieces():
        yield b"new"
        raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        write_whole(path, pieces())
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_digests_depend_on_values_not_on_key_order() -> None:
    assert digest_of({"a": 1, "b": [2, 3]}) == digest_of({"b": [2, 3], "a": 1})
    assert digest_of({"a": 1}) != digest_of({"a": 2})


@pytest.mark.slow
def test_a_kernel_of_ten_thousand_by_a_million_is_browsed_within_500_mb() -> None:
    """The benchmark compares both answers with numbers that it knows, and ends with 1 beyond the limit (docs/scale.md)."""
    script = Path(__file__).resolve().parents[1] / "benchmarks" / "scale.py"
    answer = subprocess.run([sys.executable, str(script), "--only", "browse"], capture_output=True, text=True, timeout=600)
    assert answer.returncode == 0, answer.stderr
    assert 0 < json.loads(answer.stdout)["browse"]["peak_rss_mb"] <= 500
