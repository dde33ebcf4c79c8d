"""An export reads in zarr and xarray as the run, from any window of its blocks, and is whole or not there."""

from pathlib import Path

import numpy as np
import pytest
import xarray
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from made_runs import flip

from tracin_core.errors import DamagedBlockError, InputError
from tracin_core.records.store import BlockKey, BlockStore, Mosaic
from tracin_core.records.workspace import open_workspace


@pytest.mark.parametrize("chunk", [1024, 3])
def test_an_export_reads_in_zarr_and_xarray_as_the_run(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr("tracin_core.records.zarr_export.CHUNK", chunk)
    place = open_workspace(original)
    run = place.run(place.runs()["id"].iloc[0])
    folder = place.export_zarr(run, tmp_path / "deep" / "kernels.zarr")
    group, dataset = zarr.open_group(folder, mode="r"), xarray.open_zarr(folder, consolidated=False)
    for name in ("test_train", "train_train", "test_test", "train_outputs", "test_outputs"):
        expected = getattr(run.kernels, name)
        np.testing.assert_array_equal(group[name][...], expected)
        np.testing.assert_array_equal(dataset[name].to_numpy(), expected)
    assert dataset["test_train"].dims == ("checkpoint", "layer", "test", "train")
    assert dataset["checkpoint"].to_numpy().tolist() == ["epoch 1", "epoch 2"]
    one = run.splits["train"]["id"].iloc[6]
    chosen = dataset["test_train"].sel(checkpoint="epoch 2", layer="head", train=one)
    np.testing.assert_array_equal(chosen.to_numpy(), run.kernels.test_train[1, 1, :, 6])
    assert dataset.attrs["run"] == run.id
    assert dataset.attrs["simulated"] == run.simulated
    assert dataset.attrs["recipe"] == run.manifest.recipe


def test_zarr_finds_a_flipped_bit_in_an_export(original: Path, tmp_path: Path) -> None:
    place = open_workspace(original)
    folder = place.export_zarr(place.run(place.runs()["id"].iloc[0]), tmp_path / "kernels.zarr")
    flip(folder / "test_train" / "c" / "0" / "0" / "0" / "0", 77)
    with pytest.raises(ValueError, match="checksum"):
        zarr.open_group(folder, mode="r")["test_train"][...]


def test_an_export_is_whole_or_not_there(root: Path, tmp_path: Path) -> None:
    place = open_workspace(root)
    run = place.run(place.runs()["id"].iloc[0])
    (tmp_path / "mine").mkdir()
    with pytest.raises(InputError, match="is there already"):
        place.export_zarr(run, tmp_path / "mine")
    key = run.manifest.outputs_key(run.manifest.groups[-1], run.manifest.chunks["validation"][-1])
    flip(place.store.path(key), 1)
    with pytest.raises(DamagedBlockError, match=key.file):
        place.export_zarr(run, tmp_path / "kernels.zarr")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "workspace"]


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_window_of_a_mosaic_is_that_of_the_assembled_kernel(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    store = BlockStore(tmp_path_factory.mktemp("mosaic"))
    heights, widths = (data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)) for _ in range(2))
    whole = np.random.default_rng(0).normal(size=(2, sum(heights), sum(widths))).astype(np.float32)
    blocks = []
    for i, height in enumerate(heights):
        blocks.append([])
        for j, width in enumerate(widths):
            piece = whole[:, sum(heights[:i]) :, sum(widths[:j]) :][:, :height, :width]
            turned = data.draw(st.booleans())
            values = piece.transpose(0, 2, 1) if turned else piece
            key = BlockKey("g", f"l{i}", f"r{j}", values.shape)
            store.write(key, values)
            blocks[-1].append((key, turned))
    mosaic = Mosaic(store, blocks)
    assert mosaic.shape == whole.shape
    rows, columns, layers = (
        slice(*sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n))))) for n in (*whole.shape[1:], 2)
    )
    np.testing.assert_array_equal(mosaic.window(rows, columns, layers), whole[layers, rows, columns])
    row, column = data.draw(st.integers(0, whole.shape[1] - 1)), data.draw(st.integers(0, whole.shape[2] - 1))
    np.testing.assert_array_equal(mosaic.row(row), whole[:, row])
    np.testing.assert_array_equal(mosaic.column(column), whole[:, :, column])
