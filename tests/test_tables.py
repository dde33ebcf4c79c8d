"""CSV tables: which column is what, every number as it was written, and a sentence for each cell or file that is not what it should be."""

import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_arrays import assert_sentence

from tracin_core.data import tables as module
from tracin_core.data.previews import MOST_LINES
from tracin_core.data.readers import reader_for
from tracin_core.data.seals import unsealed_text
from tracin_core.errors import DataError
from tracin_core.recipe import TableData

TABLE = """name,age,height,site,price
b,31,1.75,north,200
a,7,1.2e0,south,150
c,64,-0.5,north,100
"""


def put(folder: Path, text: str | bytes = TABLE, **section: object) -> TableData:
    path = folder / "data.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return TableData(file=path, **{"target": "price", **section})


def test_columns_of_numbers_are_features(tmp_path: Path) -> None:
    """Without being told: the target, every other column of numbers, and the rest as metadata; rows are numbered from 0."""
    reader = reader_for(put(tmp_path))
    samples = reader.list()
    assert samples.to_dict("list") == {
        "id": ["row0", "row1", "row2"],
        "target": [200, 150, 100],
        "path": [""] * 3,
        "name": ["b", "a", "c"],
        "site": ["north", "south", "north"],
    }
    np.testing.assert_array_equal(reader.read(samples), np.array([[31, 1.75], [7, 1.2], [64, -0.5]], dtype=np.float32))
    assert reader.left_out() == []


def test_columns_can_be_chosen(tmp_path: Path) -> None:
    """Features in the order of the recipe; a number that is no feature is metadata, and a text can be the target."""
    reader = reader_for(put(tmp_path, target="site", features=("height", "price"), id="name"))
    samples = reader.list()
    assert samples[["id", "target", "age"]].to_numpy().tolist() == [["a", "south", 7], ["b", "north", 31], ["c", "north", 64]]
    np.testing.assert_array_equal(reader.read(samples.iloc[[2, 0]]), np.array([[-0.5, 100], [1.2, 150]], dtype=np.float32))
    assert samples["age"].dtype == np.int64


def test_a_column_called_id_names_the_samples(tmp_path: Path) -> None:
    """By number where all are whole, and with their zeros."""
    reader = reader_for(put(tmp_path, "id,x,price\n10,1,5\n9,2,6\n007,3,7\n"))
    samples = reader.list()
    assert samples[["id", "target"]].to_numpy().tolist() == [["007", 7], ["9", 6], ["10", 5]]
    assert reader.read(samples).tolist() == [[3], [2], [1]]


def test_codes_keep_their_zeros(tmp_path: Path) -> None:
    """A metadata column with leading zeros is text; one with a missing cell is of numbers still, and so is a target."""
    reader = reader_for(put(tmp_path, "zip,n,x,price\n01234,1,1,2\n10000,,2,\n20000,3,3,4\n", features=("x",)))
    samples = reader.list()
    assert samples["zip"].tolist() == ["01234", "10000", "20000"]
    np.testing.assert_array_equal(samples["n"], [1, np.nan, 3])
    np.testing.assert_array_equal(samples["target"], [2, np.nan, 4])


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(
        st.tuples(
            st.floats(-1e30, 1e30, allow_subnormal=False),
            st.integers(-(2**40), 2**40),
            st.text(st.characters(categories=("L", "N", "P", "Zs"), include_characters=",\"'"), max_size=8),
        ),
        min_size=1,
        max_size=8,
    ),
    ends=st.sampled_from(["\n", "\r\n"]),
    mark=st.booleans(),
)
def test_what_was_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[float, int, str]], ends: str, mark: bool
) -> None:
    """Python's own writer and this reader agree: numbers, text with commas and quotes, either line end, with or without a mark."""
    path = tmp_path_factory.mktemp("any") / "data.csv"
    with path.open("w", newline="", encoding="utf-8-sig" if mark else "utf-8") as file:
        writer = csv.writer(file, lineterminator=ends, quoting=csv.QUOTE_NONNUMERIC)
        writer.writerows([("x", "n", "note", "y"), *((x, n, f"t{note}", 1) for x, n, note in rows)])
    reader = reader_for(TableData(file=path, target="y"))
    samples = reader.list()
    assert samples["note"].tolist() == [f"t{note}" for _, _, note in rows]
    expected = np.array([[np.float32(x), np.float32(n)] for x, n, _ in rows])
    np.testing.assert_allclose(reader.read(samples), expected, rtol=2e-7)


def test_the_preview_names_every_value(tmp_path: Path) -> None:
    """`column: value`, and how many more there are than fit."""
    reader = reader_for(put(tmp_path))
    samples = reader.list()
    reader.preview(samples.iloc[1], reader.read(samples)[1], tmp_path / "seen")
    assert unsealed_text((tmp_path / "seen.txt").read_text()) == "age: 7\nheight: 1.2\n"
    count = MOST_LINES + 3
    wide = reader_for(
        put(tmp_path, ",".join([f"c{i}" for i in range(count)] + ["price"]) + "\n" + ",".join(["1"] * (count + 1)) + "\n")
    )
    wide.preview(wide.list().iloc[0], wide.read(wide.list())[0], tmp_path / "wide")
    lines = unsealed_text((tmp_path / "wide.txt").read_text()).splitlines()
    assert (len(lines), lines[-1]) == (MOST_LINES + 1, "... and 3 more")


REFUSED = {
    "semicolons": ("a;b;price\n1;2;3\n", {}, r"apart by something other than a comma \('a;b;price'\); save it with commas"),
    "tabs": ("a\tb\tprice\n1\t2\t3\n", {}, "other than a comma"),
    "decimal commas": ("a,price\n1,5,2\n", {}, "Row 0 .* has 3 cells, but the header has 2"),
    "long row": ("a,price\n1,2\n1,2,3\n", {}, "Row 1 .* has 3 cells, but the header has 2"),
    "short row": ("a,b,price\n1,2,3\n1,2\n", {}, "Row 1 .* has 2 cells, but the header has 3"),
    "short text row": ("a,b,price\n1,x,y\n1,x\n", {}, "Row 1 .* has 2 cells"),
    "no target": (TABLE, {"target": "cost"}, r"no column 'cost' for target \(it has name, age"),
    "no feature": (TABLE, {"features": ("age", "weight")}, "no column 'weight' for features"),
    "no id": (TABLE, {"id": "key"}, "no column 'key' for id"),
    "only text": ("a,price\nx,1\ny,2\n", {}, "no column of numbers beside the target 'price'"),
    "one cell is text": (
        "a,price\n1,1\nn/a,2\n3,3\n",
        {},
        "'a' has 2 numbers, but 'n/a' for the sample 'row1'; mend the cell, or name",
    ),
    "one cell is empty": ("a,price\n1,1\n,2\n", {}, "'a' has 1 numbers, but '' for the sample 'row1'"),
    "nan": ("a,price\n1,1\nnan,2\n", {}, "'a' has 1 numbers, but 'nan' for the sample 'row1'"),
    "feature is text": (
        "a,b,price\n1,x,1\n",
        {"features": ("b",)},
        "'b' holds 'x' for the sample 'row0', which is no finite number",
    ),
    "infinite": ("a,price\n1,1\ninf,2\n", {}, "'a' holds 'inf' for the sample 'row1'"),
    "too large": ("a,price\n1,1\n1e39,2\n", {}, r"'a' holds '1e\+39' for the sample 'row1'"),
    "same name": ("a,a,price\n1,2,3\n", {}, "'a' stands twice"),
    "no name": ("a,,price\n1,2,3\n", {}, "Column 2 .* has no name"),
    "own name": ("a,label,price\n1,x,3\n", {}, "name 'label' of a column"),
    "same id": ("id,a,price\nx,1,2\nx,1,2\n", {}, "id 'x' stands twice in the column 'id'"),
    "no id in a row": ("id,a,price\nx,1,2\n,1,2\n", {}, "id '' in row 1"),
    "header only": ("a,price\n", {}, "no row below it"),
    "blank": ("\n\n\n", {}, "first line of 'data.csv' is empty"),
    "empty": ("", {}, "is empty"),
    "open quote": ('a,price\n"1,2\n', {}, "cannot be read"),
    "open quote in the header": ('a,"price\n1,2\n', {}, "cannot be read"),
    "utf-16": (TABLE.encode("utf-16"), {}, "NUL bytes, so it is no text in UTF-8"),
    "latin-1": ("a,ort,price\n1,Köln,2\n".encode("latin-1"), {}, "cannot be read .*utf-8"),
    "latin-1 header": ("größe,price\n1,2\n".encode("latin-1"), {}, "cannot be read .*utf-8"),
    "nul": (b"a,price\n1,2\n\x00,3\n", {}, "NUL bytes"),
    "archive": (b"PK\x03\x04\x14\x00\x00\x00", {}, "NUL bytes"),
}


@pytest.mark.parametrize(("text", "section", "told"), REFUSED.values(), ids=REFUSED)
def test_tables_that_cannot_be_samples(tmp_path: Path, text: str | bytes, section: dict[str, object], told: str) -> None:
    reader = reader_for(put(tmp_path, text, **section))
    with pytest.raises(DataError, match=told) as caught:
        reader.read(reader.list())
    assert_sentence(caught.value, tmp_path)


def test_a_table_has_a_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many bytes, cells or columns are refused before pandas sees them."""
    for name, value, told in (
        ("LARGEST_FILE", 20, "more than the 20 that are read"),
        ("MOST_CELLS", 4, "about 20 cells, but at most 10,000 and 4"),
        ("MOST_COLUMNS", 3, "has 5 columns"),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(module, name, value)
            with pytest.raises(DataError, match=told):
                reader_for(put(tmp_path)).list()


def test_a_reader_reads_one_state(tmp_path: Path) -> None:
    """Inputs belong to the samples that were listed, also if the file is written in between; a new reader sees the new one."""
    section = put(tmp_path)
    reader = reader_for(section)
    samples = reader.list()
    put(tmp_path, TABLE.replace("31", "99"))
    assert reader.read(samples)[0, 0] == 31
    assert reader_for(section).read(samples)[0, 0] == 99
