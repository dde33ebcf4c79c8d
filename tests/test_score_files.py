"""Score files: what is written is read back, what is not ours stays, and what is no number is named."""

import errno
import json
import math
import os
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracin_core.data.samples import all_pairs
from tracin_core.errors import DataError, DiskFullError, UnknownSampleError, ViewError
from tracin_core.recipe import Recipe
from tracin_core.records.interchange import provenance_path
from tracin_core.records.runs import Run
from tracin_core.records.score_files import load_records, read_scores, update_sample_metadata, write_scores
from tracin_core.scores.influence import Kernels
from tracin_core.scores.losses import PairLoss
from tracin_core.scores.view import View

SOURCES = ("model_epoch_2.pt", "model_epoch_10.pt")
PROVENANCE = {"run": "1a2b", "name": "try", "digest": "ab" * 16, "rule": {"threshold": -5.0}, "simulated": True}


def samples(count: int, start: int, angles: list[int]) -> pd.DataFrame:
    rows = [(f"box_big_deg{36 * angles[i]:03d}_1000hz_{start + i:02d}", angles[i], 36 * angles[i]) for i in range(count)]
    return pd.DataFrame(rows, columns=["id", "label", "angle"])


def small_view(seed: int = 0, train: int = 4, test: int = 3, margin: float = 1.0, **asked: Any) -> View:
    """A view of random kernels of two checkpoints; some tests are dead."""
    draw = np.random.default_rng(seed)
    features = draw.normal(size=(2, train + test, 3))
    kernel = (features @ features.transpose(0, 2, 1)).astype(np.float32)[:, None]
    outputs = draw.normal(size=(2, train + test)).astype(np.float32)
    one, two = samples(train, 0, [0, 1, 2, 0, 1][:train]), samples(test, 50, [0, 1, 2][:test])
    kernels = Kernels(
        kernel[:, :, :train, :train],
        kernel[:, :, train:, :train],
        kernel[:, :, train:, train:],
        outputs[:, :train],
        outputs[:, train:],
    )
    shared: dict[str, Any] = {"checkpoint_weights": np.array([0.5, 0.25]), "checkpoint_names": ["epoch 2", "epoch 10"], **asked}
    return View.of_pairs(
        all_pairs(one), all_pairs(two), kernels, loss=PairLoss(margin=margin), train_samples=one, test_samples=two, **shared
    )


def run_of(digest: str = "d" * 32, simulated: bool = False) -> Run:
    """What is told of a run in the provenance of what it writes."""
    checkpoints = [{"epoch": epoch, "source": source, "digest": "c"} for epoch, source in zip((2, 10), SOURCES, strict=True)]
    recipe = Recipe.from_dict({"data": {"root": ".", "material": "box_big", "frequency": "1000hz"}, "checkpoints": {"folder": "."}})
    manifest = SimpleNamespace(checkpoints=checkpoints, versions={"torch": "2"})
    return cast(Run, SimpleNamespace(id="1a2b", name="try", digest=digest, simulated=simulated, recipe=recipe, manifest=manifest))


def write(folder: Path, view: View, run: Run | None = None, **asked: Any) -> dict[str, Path]:
    files = write_scores(folder, run or run_of(), view, material="box_big", frequency="1000hz", **asked)
    return {path.stem.removeprefix("box_big_1000hz_"): path for path in files}


def ids_of(view: View) -> list[str]:
    return [*view.train_samples["id"], *view.test_samples["id"]]


# ---- written and read -----------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=12)
@given(
    seed=st.integers(0, 999), train=st.integers(2, 5), test=st.integers(2, 3), name=st.sampled_from(["tracin_influence", "effect"])
)
def test_every_format_gives_back_the_numbers_of_the_view(
    seed: int, train: int, test: int, name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    view = small_view(seed, train, test)
    files = write(tmp_path_factory.mktemp("scores"), view, per_checkpoint=True, score_name=name)
    found = {content: read_scores(path, ids_of(view), score_name=name) for content, path in files.items()}
    assert set(found) == {f"{part}{kind}metadata" for part in ("", "per_checkpoint_") for kind in ("", "influence_")}
    for read in found.values():
        assert read.noun == "pair"
        pd.testing.assert_frame_equal(read.rows, view.train_pairs[["id", "id1", "id2"]].astype(str), check_dtype=False)
        assert (len(read.unusable), len(read.unread)) == (0, 0)
        assert read.provenance is not None
    np.testing.assert_array_equal(found["metadata"].self_influence, view.self_influence())
    np.testing.assert_array_equal(found["influence_metadata"].influence, view.influence())
    assert found["influence_metadata"].tests["id"].tolist() == view.test_pairs["id"].tolist()
    assert found["per_checkpoint_metadata"].checkpoints == SOURCES == found["per_checkpoint_influence_metadata"].checkpoints
    np.testing.assert_array_equal(found["per_checkpoint_metadata"].self_contributions, view.self_contributions())
    parts = found["per_checkpoint_influence_metadata"]
    assert parts.tests["id"].tolist() == view.test_pairs["id"].tolist()  # a checkpoint's key is no further test
    assert np.isnan(parts.influence).all()
    for place, test_id in enumerate(view.test_pairs["id"]):
        np.testing.assert_array_equal(parts.contributions[:, :, place], view.checkpoint_influence(test_id).T)


def test_the_files_are_laid_out_as_they_always_were(tmp_path: Path) -> None:
    view = small_view()
    files = write(tmp_path, view, per_checkpoint=True)
    pair, test = view.train_pairs["id"].iloc[1], view.test_pairs["id"].iloc[0]
    value = float(view.influence(test)[1])
    assert files["influence_metadata"].name == "box_big_1000hz_influence_metadata.json"
    assert json.loads(files["influence_metadata"].read_text())[pair][f"tracin_influence_{test}"] == value
    assert json.loads(files["metadata"].read_text())[pair] == {"tracin_self_influence": float(view.self_influence()[1])}
    assert f"tracin_influence_{test}_model_epoch_10.pt" in json.loads(files["per_checkpoint_influence_metadata"].read_text())[pair]
    assert list(json.loads(files["per_checkpoint_metadata"].read_text())[pair]) == [f"tracin_self_influence_{s}" for s in SOURCES]


def test_every_file_has_its_provenance_beside_it(tmp_path: Path) -> None:
    view = small_view(seed=8, margin=0.1)
    for path in write(tmp_path, view, run_of(simulated=True), per_checkpoint=True).values():
        told = json.loads(provenance_path(path).read_text())
        assert told["sha256"] == sha256(path.read_bytes()).hexdigest()
        assert (told["file"], told["run"], told["digest"]) == (path.name, "1a2b", "d" * 32)
        assert told["mark"] == "SIMULATED data: made by a simulation, not measured"
        assert told["settings"]["loss"]["margin"] == 0.1
        assert told["settings"]["checkpoint_weights"] == [0.5, 0.25]
        dead = view.test_pairs["id"][view.dead_tests].tolist() if "influence" in path.name else []
        assert told.get("dead_tests", []) == dead
    assert view.dead_tests.any()


def test_only_what_is_asked_for_is_written(tmp_path: Path) -> None:
    view = small_view()
    assert list(write(tmp_path / "a", view, influence=False)) == ["metadata"]
    test = view.test_pairs["id"].iloc[1]
    path = write(tmp_path / "b", view, self_influence=False, tests=[test])["influence_metadata"]
    assert read_scores(path, ids_of(view)).tests["id"].tolist() == [test]


def test_a_score_that_is_undefined_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    view = small_view(margin=0.1, measure="cosine")
    assert np.isnan(view.influence()).any()
    with pytest.raises(ViewError, match="choose the measure dot"):
        write(tmp_path, view)
    with pytest.raises(ViewError, match="units of dot influence"):
        write(tmp_path, view, per_checkpoint=True)
    assert list(tmp_path.iterdir()) == []


# ---- updates --------------------------------------------------------------------------------------------------------------------

NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | NAMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None, max_examples=15)
@given(records=st.dictionaries(NAMES, st.dictionaries(NAMES, VALUES, max_size=4), max_size=4), extra=st.dictionaries(NAMES, VALUES))
def test_an_update_keeps_everything_that_is_not_ours(
    records: dict[str, Any], extra: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Records of samples, keys of others beside our scores, in their order: value by value; also at a second writing."""
    view, folder = small_view(), tmp_path_factory.mktemp("scores")
    path = folder / "box_big_1000hz_metadata.json"
    pair = view.train_pairs["id"].iloc[0]
    before = {**records, pair: extra}
    path.write_text(json.dumps(before))
    for other in (view, small_view(seed=7)):
        write(folder, other, run_of(f"{other.self_influence()[0]}"), influence=False)
        after = load_records(path)
        scores = dict(zip(other.train_pairs["id"], other.self_influence(), strict=True))
        assert {name: record.pop("tracin_self_influence") for name, record in list(after.items()) if name in scores} == scores
        assert {name: record for name, record in after.items() if record or name in before} == before
        assert list(after)[: len(before)] == list(before)


def test_scores_of_other_settings_never_stay_beside_new_ones(tmp_path: Path) -> None:
    """Fewer tests than before, of another run: the file holds these tests alone; of the same run: both."""
    view = small_view()
    tests = view.test_pairs["id"].tolist()
    path = tmp_path / "box_big_1000hz_influence_metadata.json"
    foreign = {view.train_pairs["id"].iloc[0]: {f"tracin_influence_{tests[2]}": 4.5}}
    path.write_text(json.dumps(foreign))
    write(tmp_path, view, self_influence=False, tests=tests[:1])
    write(tmp_path, view, self_influence=False, tests=tests[1:2])
    assert read_scores(path, ids_of(view)).tests["id"].tolist() == [tests[2], tests[0], tests[1]]
    assert json.loads(provenance_path(path).read_text())["tests"] == tests[:2]

    write(tmp_path, view, run_of("e" * 32), self_influence=False, tests=tests[1:2])
    found = read_scores(path, ids_of(view))
    assert found.tests["id"].tolist() == [tests[2], tests[1]]
    assert found.influence[0, 0] == 4.5
    told = json.loads(provenance_path(path).read_text())
    assert told["replaced"] == {"run": "1a2b", "digest": "d" * 32, "scores": 2 * len(view.train_pairs)}
    assert told["kept"] == {"records": 0, "values": 1}


@pytest.mark.parametrize("content", ["[1]", "{", '{"a": 1, "a": 2}', '{"a": {"b": 1, "b": 2}}', "\udcff"])
def test_a_file_that_cannot_be_kept_whole_is_not_touched(content: str, tmp_path: Path) -> None:
    path = tmp_path / "box_big_1000hz_metadata.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    before = path.read_bytes()
    with pytest.raises(DataError, match=r"'box_big_1000hz_metadata\.json'"):
        write(tmp_path, small_view(), influence=False)
    assert path.read_bytes() == before


@pytest.mark.parametrize("what", ["scores", "exclusions"])
def test_a_write_that_fails_leaves_the_old_file(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ended between the new bytes and the rename: the old file is whole."""
    view = small_view()
    path = write(tmp_path, view, influence=False)["metadata"]
    before = {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()}

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    again: dict[str, Callable[[], object]] = {
        "scores": lambda: write(tmp_path, small_view(3), influence=False),
        "exclusions": lambda: update_sample_metadata(path, chosen([view.train_pairs["id"].iloc[0]]), PROVENANCE),
    }
    with pytest.raises(DiskFullError):
        again[what]()
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == before


# ---- samples' records -----------------------------------------------------------------------------------------------------------


def chosen(ids: list[str], **columns: Any) -> pd.DataFrame:
    return pd.DataFrame(
        {"id": ids, **columns, "occurrences": 3, "average_influence": -6.5, "affected_tests": [["t1_t2"] for _ in ids]}
    )


@settings(deadline=None, max_examples=40)
@given(record=st.dictionaries(NAMES, VALUES, max_size=4), notes=st.none() | NAMES | st.lists(NAMES, max_size=2))
def test_an_exclusion_is_noted_and_the_rest_of_the_record_stays(
    record: dict[str, Any], notes: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("samples") / "box_500hz_metadata.json"
    path.write_text(json.dumps({"a_1": {**record, "notes": notes}, "other": record}))
    found = update_sample_metadata(path, chosen(["a_1", "a_2"]), PROVENANCE)
    assert (found.marked, found.missing) == (("a_1",), ("a_2",))
    after = json.loads(path.read_text())
    assert after["other"] == record
    assert {name: value for name, value in after["a_1"].items() if name not in ("excluded", "notes", "tracin_info")} == {
        name: value for name, value in record.items() if name not in ("excluded", "notes", "tracin_info")
    }
    said = after["a_1"]
    assert said["excluded"] is True
    kept, added = (said["notes"][:-1], said["notes"][-1]) if isinstance(notes, list) else (None, said["notes"])
    assert kept == (notes if isinstance(notes, list) else None)
    assert added.startswith(f"{notes}\n" if notes and isinstance(notes, str) else "2")
    assert "(threshold=-5.0), run 1a2b; SIMULATED data" in added
    assert set(said["tracin_info"]) == {"exclusion_date", "negative_occurrences", "average_influence", "affected_test_samples"}
    assert said["tracin_info"]["exclusion_date"] in added
    assert (said["tracin_info"]["negative_occurrences"], said["tracin_info"]["average_influence"]) == (3, -6.5)
    assert said["tracin_info"]["affected_test_samples"] == ["t1_t2"]


def test_a_pair_is_marked_and_its_samples_are_not(tmp_path: Path) -> None:
    """They stay in the training with their other pairs; a pair is found in either order."""
    path = tmp_path / "x.json"
    path.write_text(
        json.dumps({"a": {"angle": 0}, "b": {"angle": 36}, "b_a": {"tracin_self_influence": 1.5}, "c": {"excluded": True}})
    )
    found = update_sample_metadata(path, chosen(["a_b", "a_c"], id1=["a", "a"], id2=["b", "c"]), PROVENANCE)
    after = json.loads(path.read_text())
    assert (found.marked, found.missing, found.earlier) == (("b_a", "a_c"), (), ("c",))
    assert (after["a"], after["b"], after["c"]) == ({"angle": 0}, {"angle": 36}, {"excluded": True})
    assert (after["b_a"]["tracin_self_influence"], after["b_a"]["excluded"]) == (1.5, True)
    assert after["a_c"]["excluded"] is True


def test_scores_and_exclusions_share_a_file_and_its_provenance(tmp_path: Path) -> None:
    view = small_view()
    path = write(tmp_path, view, influence=False)["metadata"]
    update_sample_metadata(path, chosen([view.train_pairs["id"].iloc[0]], id1="x", id2="y"), PROVENANCE)
    write(tmp_path, view, influence=False)
    told = json.loads(provenance_path(path).read_text())
    assert told["digest"] == "d" * 32
    assert [update["run"] for update in told["updates"]] == ["1a2b"]
    assert told["sha256"] == sha256(path.read_bytes()).hexdigest()
    assert json.loads(path.read_text())[view.train_pairs["id"].iloc[0]]["excluded"] is True


def test_notes_that_nothing_can_be_appended_to_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"a": {"notes": 3}}')
    with pytest.raises(DataError, match=r"The notes of 'a' in 'x\.json' are 3"):
        update_sample_metadata(path, chosen(["a"]), PROVENANCE)
    assert path.read_text() == '{"a": {"notes": 3}}'


# ---- tolerant reading -----------------------------------------------------------------------------------------------------------

KNOWN = ["a_1", "a_2", "b_1"]


def read(tmp_path: Path, records: Any, known: list[str] = KNOWN, **asked: Any) -> Any:
    path = tmp_path / "x.json"
    path.write_text(records if isinstance(records, str) else json.dumps(records))
    return read_scores(path, known, **asked)


def test_flat_and_nested_numbers_and_records_of_samples_are_told_apart(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        {
            "a_1": {"angle": 0, "excluded": False},
            "a_1_b_1": {"tracin_self_influence": 2, "tracin_influence_a_2_b_1": {"tracin_influence": -1.5}, "notes": "x"},
            "a_2_b_1": {"tracin_self_influence": {"tracin_self_influence": 3.5}, "tracin_influence_a_2_b_1": 0.0},
            "about": {"made": "elsewhere"},
        },
    )
    assert found.rows.to_dict("list") == {"id": ["a_1_b_1", "a_2_b_1"], "id1": ["a_1", "a_2"], "id2": ["b_1", "b_1"]}
    assert found.tests["id"].tolist() == ["a_2_b_1"]
    assert found.self_influence.tolist() == [2, 3.5]
    assert found.influence.tolist() == [[-1.5], [0.0]]
    assert found.samples == {"a_1": {"angle": 0, "excluded": False}}
    assert found.unread == ("about",)


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("null", "null"),
        ("NaN", "NaN"),
        ("-Infinity", "-infinity"),
        ("1e999", "infinity"),
        ('"0.5"', "'0.5'"),
        ("true", "True"),
        ("[1]", "a list"),
        ('{"tracin_influence": null}', "null"),
        ('{"other": 1}', "a record without one number"),
        ("1" + "0" * 400, "infinity"),
    ],
)
def test_what_is_no_number_is_named_with_its_key_and_never_0(written: str, told: str, tmp_path: Path) -> None:
    found = read(tmp_path, f'{{"a_1_b_1": {{"tracin_influence_a_2_b_1": {written}, "tracin_self_influence": 1}}}}')
    assert [str(unusable) for unusable in found.unusable] == [f"'tracin_influence_a_2_b_1' of 'a_1_b_1' is {told}"]
    assert math.isnan(found.influence[0, 0])
    assert found.self_influence[0] == 1


def test_keys_of_checkpoints_are_no_further_tests(tmp_path: Path) -> None:
    keys = ("tracin_influence_a_2_b_1", "tracin_influence_a_2_b_1_model_epoch_10.pt", "tracin_influence_a_2_b_1_model_epoch_2")
    found = read(tmp_path, {"a_1_b_1": {key: float(place) for place, key in enumerate(keys)}})
    assert found.tests["id"].tolist() == ["a_2_b_1"]
    assert found.checkpoints == ("model_epoch_10.pt", "model_epoch_2")
    assert found.influence.tolist() == [[0.0]]
    assert found.contributions.tolist() == [[[1.0]], [[2.0]]]


@pytest.mark.parametrize(
    ("records", "known", "told"),
    [
        ({"a_1_c_9": {"tracin_self_influence": 1}}, KNOWN, "'a_1_c_9' names no two samples"),
        ({"x_y_z": {"tracin_self_influence": 1}}, ["x", "y_z", "x_y", "z"], "'x_y_z' names 2 different pairs"),
        ({"a_b": {"tracin_self_influence": 1}}, ["a", "b", "a_b"], "'a_b' in 'x.json' names a sample and also a pair"),
        ({"a_1_b_1": {"tracin_influence_a_2_c_9": 1}}, KNOWN, "'tracin_influence_a_2_c_9' in 'x.json' names no test"),
        ({"y_q": {"tracin_influence_x_y_z": 1}}, ["q", "x", "y", "y_z", "x_y", "z"], "2 different pairs"),
    ],
)
def test_a_joined_id_that_cannot_be_split_in_one_way_is_refused_by_name(
    records: Any, known: list[str], told: str, tmp_path: Path
) -> None:
    with pytest.raises(UnknownSampleError, match=told):
        read(tmp_path, records, known)


def test_a_file_without_scores_or_with_two_kinds_of_them_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no score"):
        read(tmp_path, {"a_1": {"angle": 0}})
    with pytest.raises(DataError, match="under 'a_1', of a sample"):
        read(tmp_path, {"a_1": {"tracin_self_influence": 1}, "a_1_b_1": {"tracin_self_influence": 1}})
    assert read(tmp_path, {"a_1": {"tracin_influence_b_1": 1}}).noun == "sample"


def test_provenance_counts_only_for_the_content_that_it_is_of(tmp_path: Path) -> None:
    view = small_view()
    path = write(tmp_path, view, influence=False)["metadata"]
    path.write_text(path.read_text().replace('tracin_self_influence": ', 'tracin_self_influence": 1'))
    assert read_scores(path, ids_of(view)).provenance is None
