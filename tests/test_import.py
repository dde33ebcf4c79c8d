"""Score files from elsewhere as runs: the same numbers, what-ifs refused with the reason, and a verdict on what the numbers are."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import texts_of
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from lab import make_recordings
from streamlit.testing.v1 import AppTest
from test_score_files import write

from pages.shared import frame
from tracin_core.data.readers import list_recordings
from tracin_core.data.samples import all_pairs
from tracin_core.errors import DamagedBlockError, DataError, NotFoundError, UnknownSampleError, ViewError
from tracin_core.records.imports import import_scores
from tracin_core.records.maintenance import SCORES
from tracin_core.records.workspace import Workspace, open_workspace
from tracin_core.scores.influence import Kernels
from tracin_core.scores.losses import PairLoss
from tracin_core.scores.view import View

BATCH = 32


def samples(takes: int = 3) -> pd.DataFrame:
    rows = [
        (f"box_deg{angle:03d}_1000hz_{take:02d}", rank, angle)
        for rank, angle in enumerate(range(0, 181, 36))
        for take in range(takes)
    ]
    return pd.DataFrame(rows, columns=["id", "label", "angle"])


def computed(seed: int = 0, margin: float = 1.0, loss: Any = "margin", train: int = 3, test: int = 2) -> View:
    """Scores of pairs from random features: what a correct tool would have written."""
    draw = np.random.default_rng(seed)
    every = samples(train + test)
    trained = every["id"].str[-2:].astype(int) < train
    one, two = every[trained].reset_index(drop=True), every[~trained].reset_index(drop=True)
    features = draw.normal(size=(2, len(one) + len(two), 8))
    kernel = (features @ features.transpose(0, 2, 1)).astype(np.float32)[:, None]
    outputs = draw.normal(size=(2, len(one) + len(two))).astype(np.float32)
    n = len(one)
    kernels = Kernels(kernel[:, :, :n, :n], kernel[:, :, n:, :n], kernel[:, :, n:, n:], outputs[:, :n], outputs[:, n:])
    return View.of_pairs(
        all_pairs(one),
        all_pairs(two),
        kernels,
        loss=PairLoss(name=loss, margin=margin),
        train_samples=one,
        test_samples=two,
        checkpoint_weights=np.ones(2),
        checkpoint_names=["epoch 2", "epoch 10"],
    )


VIEW = computed()
FILES = {
    "metadata": "self_influence_file",
    "influence_metadata": "influence_file",
    "per_checkpoint_metadata": "per_checkpoint_file",
    "per_checkpoint_influence_metadata": "per_checkpoint_influence_file",
}


@pytest.fixture
def place(workspace_path: Path) -> Workspace:
    return open_workspace(workspace_path)


def files_of(folder: Path, view: View = VIEW, **asked: Any) -> dict[str, Any]:
    """The arguments of an import of what this view has written."""
    return {FILES[content]: path for content, path in write(folder, view, **asked).items()}


def foreign(folder: Path, records: dict[str, Any], known: pd.DataFrame | None = None, name: str = "box_1000hz_metadata") -> Path:
    """A file of another tool, with records of samples mixed in and no provenance."""
    told = samples(5) if known is None else known
    of_samples = {row["id"]: {"id": row["id"], "angle": int(row["angle"]), "notes": ""} for _, row in told.iterrows()}
    path = folder / f"{name}.json"
    path.write_text(json.dumps({**of_samples, **records}))
    return path


# ---- the same numbers -----------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=6, phases=[Phase.generate])
@given(seed=st.integers(0, 99), margin=st.sampled_from([0.0, 1.0, 10.0]), parts=st.booleans())
def test_export_and_import_is_identity(seed: int, margin: float, parts: bool, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Scores, lists, thresholds and sample roll-ups of the imported run are those of the run that wrote the files, to the last bit."""
    folder = tmp_path_factory.mktemp("import")
    view = computed(seed, margin)
    run = import_scores(open_workspace(folder / "workspace"), **files_of(folder, view, per_checkpoint=parts))
    found = run.view()
    pd.testing.assert_frame_equal(found.train_pairs, view.train_pairs, check_dtype=False)
    pd.testing.assert_frame_equal(found.test_pairs, view.test_pairs, check_dtype=False)
    np.testing.assert_array_equal(found.self_influence(), view.self_influence())
    np.testing.assert_array_equal(found.influence(), view.influence())
    np.testing.assert_array_equal(found.dead_tests, view.dead_tests)
    np.testing.assert_allclose(found.mean_influence(), view.mean_influence(), rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(found.worst_influence(), view.worst_influence())
    np.testing.assert_allclose(found.sample_influence(), view.sample_influence(), rtol=1e-9, atol=1e-9)
    for mode in ("ranking_pair", "full_pair"):
        rule: dict[str, Any] = {"threshold": -2.0, "min_occurrences": 2, "max_exclusions": None, "pair_mode": mode}
        pd.testing.assert_frame_equal(found.exclusions(**rule), view.exclusions(**rule))
    pd.testing.assert_frame_equal(found.sweep(2).counts([-3, -1, 0]), view.sweep(2).counts([-3, -1, 0]))
    live = view.test_pairs["id"][~view.dead_tests].iloc[0]
    for one, other in zip(found.top(live), view.top(live), strict=True):
        pd.testing.assert_frame_equal(one.drop(columns="contributions"), other.drop(columns="contributions"), check_dtype=False)
    pair = view.train_pairs["id"].iloc[3]
    for one, other in zip(
        (*found.top_tests(pair), *found.top_of_group([live])), (*view.top_tests(pair), *view.top_of_group([live])), strict=True
    ):
        pd.testing.assert_frame_equal(
            one.drop(columns="contributions"), other.drop(columns="contributions"), check_dtype=False, rtol=1e-9
        )
    assert run.loss == PairLoss(margin=margin)
    assert run.simulated is False
    if parts:
        np.testing.assert_array_equal(found.contributions(pair, live), view.contributions(pair, live))
        np.testing.assert_array_equal(found.self_contributions(), view.self_contributions())
        assert found.checkpoint_names == ["model_epoch_2.pt", "model_epoch_10.pt"]
        assert run.checkpoints["epoch"].tolist() == [2, 10]


def test_what_needs_kernels_is_refused_in_one_sentence(tmp_path: Path, place: Workspace) -> None:
    run = import_scores(place, **files_of(tmp_path))
    view = run.view(weights="uniform", measure="dot", checkpoints=None)
    test, pair = view.test_pairs["id"].iloc[0], view.train_pairs["id"].iloc[0]
    refused: list[Callable[[], Any]] = [
        *(
            lambda name=name, value=value: run.view(**{name: value})
            for name, value in {
                "loss": "logistic",
                "margin": 3.0,
                "checkpoints": [2],
                "weights": "step_sum",
                "measure": "cosine",
                "layers": ["x"],
                "relabel": {"a": 1},
                "pairs": "drawn",
                "test_quantity": "score_difference",
            }.items()
        ),
        lambda: run.kernels,
        lambda: run.training,
        run.methods,
        run.checkpoint_weights,
        lambda: run.relabel_effects(test),
        view.test_self_influence,
        lambda: view.train_losses,
        lambda: view.test_derivatives,
        lambda: view.suspects("mean_loss", quantile=0.9),
        lambda: view.kernels.train_train,
    ]
    for ask in refused:
        with pytest.raises(ViewError, match="imported from score files, which hold scores and no kernels"):
            ask()
    for ask in (lambda: view.contributions(pair, test), view.self_contributions):
        with pytest.raises(ViewError, match="share of each checkpoint"):
            ask()
    what_ifs = view.what_ifs().set_index("what_if")
    assert what_ifs.index[what_ifs["available"]].tolist() == ["exclusions"]
    assert what_ifs["why_not"].drop("exclusions").str.contains("imported from score files").all()


@pytest.mark.parametrize("part", ["self_influence", "influence"])
def test_a_file_alone_is_a_run_that_says_what_it_lacks(part: str, tmp_path: Path, place: Workspace) -> None:
    run = import_scores(place, **{f"{part}_file": files_of(tmp_path)[f"{part}_file"]})
    view = run.view()
    if part == "influence":
        np.testing.assert_array_equal(view.influence(), VIEW.influence())
        assert view.top(VIEW.test_pairs["id"].iloc[0])[0]["self_influence"].isna().all()
        with pytest.raises(ViewError, match="hold no self-influence; import the file"):
            view.self_influence()
    else:
        np.testing.assert_array_equal(view.self_influence(), VIEW.self_influence())
        assert run.counts == (len(VIEW.train_pairs), 0)
        with pytest.raises(ViewError, match="hold no influence on test pairs"):
            view.mean_influence()
        with pytest.raises(NotFoundError):
            view.influence("x")


def test_a_run_is_named_by_its_content_and_sealed(tmp_path: Path, place: Workspace) -> None:
    first = import_scores(place, **files_of(tmp_path / "a"))
    again = import_scores(place, **files_of(tmp_path / "a"))
    other = import_scores(place, **files_of(tmp_path / "b", computed(1)))
    assert (first.id, first.digest) == (again.id, again.digest)
    assert other.digest != first.digest
    assert sorted(place.runs()["id"]) == sorted([first.id, other.id])
    assert place.is_done(first.id)
    assert place.verify().damages == []
    assert place.gc() == []
    path = place.root / "runs" / first.id / SCORES
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    assert [damage.file for damage in place.verify().damages] == [f"runs/{first.id}/{SCORES}"]
    with pytest.raises(DamagedBlockError, match="import the score files again"):
        place.run(first.id).view().self_influence()
    path.unlink()
    assert [damage.file for damage in place.verify().damages] == [f"runs/{first.id}/{SCORES}"]


def test_exclusions_of_an_imported_run_are_exported_like_others(tmp_path: Path, place: Workspace) -> None:
    run = import_scores(place, **files_of(tmp_path))
    rule: dict[str, Any] = {"threshold": -1.0, "min_occurrences": 1, "max_exclusions": 5, "pair_mode": "ranking_pair"}
    text, provenance = place.export_exclusions(run, run.view().exclusions(**rule), rule)
    assert len(text.read_text().splitlines()) > 5
    assert (provenance.name, json.loads(provenance.read_text())["digest"]) == (f"{text.stem}.provenance.json", run.digest)
    for name in (provenance.name, f"{text.stem}.json"):  # the latter is where earlier versions put it
        provenance = provenance.rename(text.with_name(name))
        assert place.exported_exclusions(run)["provenance"].tolist() == [provenance]
        rebuilt = place.rebuild_catalogue()
        assert (rebuilt.decisions, rebuilt.damages) == (1, [])


def test_recordings_give_pictures_and_sounds(tmp_path: Path, place: Workspace) -> None:
    root = make_recordings(tmp_path / "recordings", takes=6)
    ids = list_recordings(root, "box", "1000hz")["id"].tolist()
    path = tmp_path / "box_1000hz_metadata.json"
    path.write_text(json.dumps({f"{ids[0]}_{ids[-1]}": {"tracin_self_influence": 1.5}}))
    run = import_scores(place, self_influence_file=path, data_root=root)
    assert run.simulated  # the recordings say so
    assert run.recipe.data.title == "box 1000hz"
    for sample in (ids[0], ids[-1]):
        assert all(file.is_file() for file in run.preview(sample)[:2])
    assert run.samples["sequence"].tolist() == [0, 5]


# ---- what cannot be imported ----------------------------------------------------------------------------------------------------


def test_without_known_samples_or_scores_nothing_is_imported(tmp_path: Path, place: Workspace) -> None:
    a, b = samples()["id"].iloc[[0, -1]]
    bare = foreign(tmp_path, {f"{a}_{b}": {"tracin_self_influence": 1}}, samples(0))
    with pytest.raises(DataError, match="unknown which samples"):
        import_scores(place, self_influence_file=bare)
    with pytest.raises(DataError, match="No file of scores"):
        import_scores(place)
    elsewhere = foreign(tmp_path, {}, samples(2), name="samples")
    with pytest.raises(UnknownSampleError, match="names no two samples"):
        import_scores(
            place, self_influence_file=foreign(tmp_path, {f"{a}_x": {"tracin_self_influence": 1}}), samples_metadata=elsewhere
        )
    assert place.runs().empty


def test_angles_decide_pairs_and_0_is_one(tmp_path: Path, place: Workspace) -> None:
    table = samples()
    a, a2, b = table["id"].iloc[[0, 1, -1]]
    records = {f"{one}_{two}": {"tracin_self_influence": 2.0 + len(one)} for one, two in ((a, b), (a, a2))}
    path = foreign(tmp_path, records)
    run = import_scores(place, self_influence_file=path)
    assert run.train_pairs[["angle1", "angle2"]].to_numpy().tolist() == [[0, 180]]
    checks = run.health().set_index("check")
    assert not checks.loc["different_angles", "passed"]
    assert f"{a}_{a2}" in str(checks.loc["different_angles", "detail"])
    path.write_text(path.read_text().replace(f'"{b}", "angle": 180', f'"{b}", "angle": "?"'))
    with pytest.raises(DataError, match="The angle of 1 samples is unknown"):
        import_scores(place, self_influence_file=path)
    wrong = tmp_path / "wrong.json"
    wrong.write_text(json.dumps({a: {"angle": 72}}))
    path = foreign(tmp_path, records)
    with pytest.raises(DataError, match="at 72 degrees by one source and at 0 by"):
        import_scores(place, self_influence_file=path, samples_metadata=wrong)


def test_pairs_and_tests_without_all_numbers_are_left_out_and_named(tmp_path: Path, place: Workspace) -> None:
    files = files_of(tmp_path)
    records = json.loads(files["influence_file"].read_text())
    pairs, tests = VIEW.train_pairs["id"].tolist(), VIEW.test_pairs["id"].tolist()
    records[pairs[2]][f"tracin_influence_{tests[1]}"] = None
    for pair in pairs:
        records[pair][f"tracin_influence_{tests[4]}"] = float("nan")
    del records[pairs[5]]
    files["influence_file"].write_text(json.dumps(records))
    run = import_scores(place, **files)
    assert run.train_pairs["id"].tolist() == [pair for at, pair in enumerate(pairs) if at not in (2, 5)]
    assert run.test_pairs["id"].tolist() == [test for at, test in enumerate(tests) if at != 4]
    complete = run.health().set_index("check").loc["complete"]
    assert not complete["passed"]
    for told in (f"of '{pairs[2]}' is null", f"of '{pairs[0]}' is NaN", f"tests without all numbers: {tests[4]}", "1 pairs that"):
        assert told in complete["detail"]


# ---- the verdict ----------------------------------------------------------------------------------------------------------------


def drawn(view: View, seed: int = 0) -> pd.DataFrame:
    """The pairs in the order of a random drawing, every other one turned."""
    order = np.random.default_rng(seed).permutation(len(view.train_pairs))
    return view.train_pairs.iloc[order]


def per_batch(values: np.ndarray[Any, Any], jitter: float = 0.0) -> np.ndarray[Any, Any]:
    """The mean of each batch written to each of its pairs, perhaps with a little of its own."""
    block = np.arange(len(values)) // BATCH
    return np.array([values[block == b].mean() for b in block]) * (1 + jitter * np.random.default_rng(3).normal(size=len(values)))


@pytest.mark.parametrize(
    ("kind", "failed"),
    [("per_pair", []), ("per_batch", ["blocks"]), ("nearly", ["blocks"]), ("sorted", ["blocks"]), ("rounded", [])],
)
def test_numbers_of_batches_are_told_from_numbers_of_pairs(kind: str, failed: list[str], tmp_path: Path, place: Workspace) -> None:
    """Also where they differ a little within a batch, or the file is sorted afterwards; numbers that were rounded are fine."""
    pairs = drawn(VIEW)
    own = VIEW.self_influence()[pairs.index]
    scores = {"per_pair": own, "per_batch": per_batch(own), "nearly": per_batch(own, 1e-3), "sorted": per_batch(own)}
    values = scores.get(kind, np.round(own, 1))
    rows = sorted(zip(pairs["id"], values, strict=True)) if kind == "sorted" else list(zip(pairs["id"], values, strict=True))
    run = import_scores(place, self_influence_file=foreign(tmp_path, {pair: {"tracin_self_influence": v} for pair, v in rows}))
    checks = run.health().set_index("check")["passed"]
    assert checks.index[~checks].tolist() == failed


@pytest.mark.parametrize("turned", [1.0, 1.0 + 1e-6, 1.1])
def test_mirrored_pairs_must_have_equal_scores(turned: float, tmp_path: Path, place: Workspace) -> None:
    own = VIEW.self_influence()
    records = {}
    for (_, pair), value in zip(VIEW.train_pairs.iterrows(), own, strict=True):
        records[pair["id"]] = {"tracin_self_influence": value}
        records[f"{pair['id2']}_{pair['id1']}"] = {"tracin_self_influence": value * turned}
    run = import_scores(place, self_influence_file=foreign(tmp_path, records))
    check = run.health().set_index("check").loc["mirrored"]
    assert check["passed"] == (turned < 1.01)
    assert f"of {len(own)} pairs" in check["detail"]
    assert len(run.train_pairs) == 2 * len(own)  # as in the file
    assert run.health().set_index("check").loc["blocks", "passed"]  # equal mirror images are no blocks


def test_dead_tests_negative_self_influences_and_shared_samples_are_listed(tmp_path: Path, place: Workspace) -> None:
    view = computed(margin=0.0)
    assert view.dead_tests.any()
    files = files_of(tmp_path, view)
    run = import_scores(place, **files)
    check = run.health().set_index("check").loc["dead_tests"]
    assert not check["passed"]
    assert all(test in check["detail"] for test in view.test_pairs["id"][view.dead_tests])
    a, b = samples()["id"].iloc[[0, -1]]
    records = {f"{a}_{b}": {"tracin_self_influence": -1.0, f"tracin_influence_{a}_{b}": 1.0}}
    path = foreign(tmp_path, records)
    checks = import_scores(place, self_influence_file=path, influence_file=path).health().set_index("check")
    assert not checks.loc["not_negative", "passed"]
    assert not checks.loc["sides", "passed"]
    assert a in str(checks.loc["sides", "detail"])


# ---- on the pages ---------------------------------------------------------------------------------------------------------------

PAGES = [page for pages in frame.SECTIONS.values() for page in pages]


@pytest.mark.parametrize("page", PAGES)
def test_every_page_shows_an_imported_run_and_what_its_numbers_are(
    page: str, open_page: Callable[..., AppTest], place: Workspace, tmp_path: Path
) -> None:
    files = files_of(tmp_path)
    records = json.loads(files["self_influence_file"].read_text())
    for (pair, record), value in zip(records.items(), per_batch(VIEW.self_influence()), strict=True):
        records[pair] = {**record, "tracin_self_influence": value}
    files["self_influence_file"].write_text(json.dumps(records))
    test = open_page(page, run=import_scores(place, **files).id)
    assert not test.exception
    assert all("imported from score files" in error.value for error in test.error)  # a what-if, refused with the reason
    assert "These numbers are not per-pair influences" in texts_of(test)
    assert "shared with another pair" in texts_of(test)


def test_a_sound_import_has_no_warning_and_both_languages_warn_of_another(
    open_page: Callable[..., AppTest], place: Workspace, tmp_path: Path
) -> None:
    sound = import_scores(place, **files_of(tmp_path / "sound"))
    assert "not per-pair" not in texts_of(open_page(run=sound.id))
    a, b = samples()["id"].iloc[[0, -1]]
    wrong = import_scores(place, self_influence_file=foreign(tmp_path, {f"{a}_{b}": {"tracin_self_influence": -1.0}}))
    assert "1 of 1 self-influences are negative" in texts_of(open_page(run=wrong.id)).replace("\\", "")
    assert "這些數字不是逐對的影響力" in texts_of(open_page(run=wrong.id, lang="zh-TW"))


@pytest.mark.parametrize(
    ("page", "part", "told"),
    [
        ("overview", "influence", "hold no self-influence"),
        ("neighbours", "self_influence", "hold no influence on test pairs"),
        ("threshold", "self_influence", "hold no influence on test pairs"),
    ],
)
def test_a_part_that_is_not_there_is_said_to_be_missing(
    page: str, part: str, told: str, open_page: Callable[..., AppTest], place: Workspace, tmp_path: Path
) -> None:
    run = import_scores(place, **{f"{part}_file": files_of(tmp_path)[f"{part}_file"]})
    test = open_page(page, run=run.id)
    assert not test.exception
    assert [error.value for error in test.error] == []
    assert told in "\n".join(info.value for info in test.info)
