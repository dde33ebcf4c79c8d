"""Splits and pairs: every sample on one side, every pair once, and ids that can be told apart."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tracin_core.data.samples import (
    all_pairs,
    require_classes,
    split_pair_id,
    split_samples,
    stratified_pairs,
    stratified_shares,
    torch_permutation,
    with_labels,
)
from tracin_core.errors import DataError, InputError, TooFewClassesError, UnknownSampleError
from tracin_core.recipe import ClassificationTask, RankingTask, RegressionTask, SplitSection

ANGLES = (0, 36, 72)


def table(takes: int = 6, angles: tuple[int, ...] = ANGLES) -> pd.DataFrame:
    """One sample per angle and take, sorted by id."""
    rows = [
        {
            "id": f"my_box_deg{angle:03d}_500hz_{take:02d}",
            "label": label,
            "angle": angle,
            "material": "my_box",
            "frequency": "500hz",
            "sequence": take,
        }
        for label, angle in enumerate(angles)
        for take in range(takes)
    ]
    return pd.DataFrame(rows, columns=["id", "label", "angle", "material", "frequency", "sequence"])


def sides(samples: pd.DataFrame, section: SplitSection) -> dict[str, set[int]]:
    split = split_samples(samples, section)
    return {side: set(split.loc[split["split"] == side, "sequence"]) for side in ("train", "validation", "test")}


@given(
    train=st.integers(1, 5),
    validation=st.integers(1, 4),
    test=st.integers(0, 4),
    more=st.integers(0, 3),
    seed=st.integers(0, 2**31),
)
def test_a_take_is_on_one_side(train: int, validation: int, test: int, more: int, seed: int) -> None:
    """Takes are dealt out whole, in the asked numbers, and what is over goes to the test side."""
    section = SplitSection(train=train, validation=validation, test=test, seed=seed)
    dealt = sides(table(train + validation + test + more), section)
    assert [len(dealt[side]) for side in ("train", "validation", "test")] == [train, validation, test + more]
    assert set.union(*dealt.values()) == set(range(train + validation + test + more))


def test_takes_follow_the_seed() -> None:
    """The rule is the legacy permutation of the distinct take numbers, gaps in them included."""
    samples = table(20)
    samples["sequence"] *= 3
    order = np.random.RandomState(5).permutation(np.arange(20) * 3)
    dealt = sides(samples, SplitSection(seed=5))
    assert dealt == {"train": set(order[:10]), "validation": set(order[10:14]), "test": set(order[14:])}


def test_too_few_takes_are_refused_with_numbers() -> None:
    with pytest.raises(DataError, match=r"asks for 10 \+ 4 \+ 6 takes, but the recordings have 6"):
        split_samples(table(6), SplitSection())


@given(count=st.integers(0, 300), seed=st.integers(0, 2**32 - 1))
def test_permutation_is_torchs(count: int, seed: int) -> None:
    """The lab's split can be repeated without torch."""
    expected = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).numpy()
    np.testing.assert_array_equal(torch_permutation(count, seed), expected)


@given(takes=st.integers(1, 40), seed=st.integers(0, 2**31))
def test_random_split_is_the_labs(takes: int, seed: int) -> None:
    """`floor(0.7 n)` samples train, exactly those that `random_split` picks; there is no test side."""
    samples = table(takes)
    split = split_samples(samples, SplitSection(rule="random", seed=seed))["split"].to_numpy()
    trained = int(np.floor(0.7 * len(samples)))
    first, _ = torch.utils.data.random_split(
        range(len(samples)), [trained, len(samples) - trained], generator=torch.Generator().manual_seed(seed)
    )
    assert set(np.flatnonzero(split == "train")) == set(first.indices)
    assert set(split) <= {"train", "validation"}


def targets(*values: object) -> pd.DataFrame:
    """Samples that have nothing but a target."""
    return pd.DataFrame({"id": [f"s{row}" for row in range(len(values))], "target": list(values), "path": ""})


def shares(section: SplitSection) -> dict[str, float]:
    return {"train": 0.0, "validation": 0.0, "test": 0.0} | stratified_shares(section)


@settings(deadline=None)
@given(
    labels=st.lists(st.integers(0, 4), min_size=30, max_size=120),
    train=st.floats(0.1, 0.8),
    validation=st.floats(0.1, 0.9) | st.none(),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_class_is_on_every_side_in_its_share(labels: list[int], train: float, validation: float | None, seed: int) -> None:
    """To within two samples of each class and one of all; the same seed deals the same, and nothing but labels and seed counts."""
    validation = None if validation is None else validation * (1 - train)
    section = SplitSection(rule="stratified", train_fraction=train, validation_fraction=validation, seed=seed)
    samples = with_labels(targets(*labels, 0, 1), ClassificationTask())
    assume(min(stratified_shares(section).values()) * len(samples) >= 1)
    split = split_samples(samples, section)
    for side, share in shares(section).items():
        here = split[split["split"] == side]
        assert abs(len(here) - share * len(split)) < 1
        for label, part in split.groupby("label"):
            assert abs(int((here["label"] == label).sum()) - share * len(part)) < 2
    pd.testing.assert_frame_equal(
        split, split_samples(samples.assign(id=[f"t{i}" for i in range(len(samples))]), section).assign(id=split["id"])
    )


def test_small_classes_do_not_all_lose_the_same_side() -> None:
    """Twenty classes of two: the sides have their shares although no class can be on three of them."""
    samples = with_labels(targets(*[f"class {row // 2}" for row in range(40)]), ClassificationTask())
    split = split_samples(samples, SplitSection(rule="stratified"))
    assert split["split"].value_counts().to_dict() == {"train": 28, "validation": 6, "test": 6}
    other = split_samples(samples, SplitSection(rule="stratified", seed=1))
    assert (other["split"] != split["split"]).any()


@pytest.mark.parametrize("task", [RegressionTask(), RankingTask()], ids=["regression", "ranking"])
def test_numbers_are_dealt_out_by_deciles(task: RegressionTask | RankingTask) -> None:
    """Each tenth of the samples by their number gives every side its share, and the seed decides which of them."""
    numbers = np.random.default_rng(0).normal(size=200)
    samples = with_labels(targets(*numbers), task)
    split = split_samples(samples, SplitSection(rule="stratified"))
    decile = np.argsort(np.argsort(numbers)) // 20
    for side, share in (("train", 0.7), ("validation", 0.15), ("test", 0.15)):
        counts = np.bincount(decile[split["split"] == side], minlength=10)
        assert (np.abs(counts - 20 * share) < 2).all()
    assert (split_samples(samples, SplitSection(rule="stratified", seed=1))["split"] != split["split"]).any()


def test_a_side_without_samples_is_refused_with_numbers() -> None:
    samples = with_labels(targets(0, 1, 0), ClassificationTask())
    with pytest.raises(
        DataError, match=r"3 samples in shares of 0\.7 for train, 0\.15 for validation, 0\.15 for test make sides of"
    ):
        split_samples(samples, SplitSection(rule="stratified"))
    without_test = SplitSection(rule="stratified", train_fraction=0.6, validation_fraction=0.4)
    assert set(split_samples(samples, without_test)["split"]) == {"train", "validation"}
    assert stratified_shares(SplitSection(rule="stratified", train_fraction=0.9, validation_fraction=0.1)).keys() == {
        "train",
        "validation",
    }


def test_a_column_says_the_side() -> None:
    """In the long words or the short ones; it may be called `split`."""
    samples = targets(1, 2, 3, 4, 5).assign(split=["train", "val", "valid", "validation", "test"])
    section = SplitSection(rule="column", column="split")
    assert list(split_samples(samples, section)["split"]) == ["train", "validation", "validation", "validation", "test"]
    assert (
        list(split_samples(samples.rename(columns={"split": "fold"}), SplitSection(rule="column", column="fold"))["split"])[1]
        == "validation"
    )


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (["train", "Train", "val"], "'fold' says 'Train' of the sample 's1'; write train, validation"),
        (["train", "", "val"], "'fold' says '' of the sample 's1'"),
        (["train", np.nan, "val"], "'fold' says 'nan' of the sample 's1'"),
        ([0, 1, 2], "'fold' says '0' of the sample 's0'"),
        (["train", "train", "test"], "None of the 3 samples is on the validation side by the column 'fold'"),
        (["val", "val", "test"], "None of the 3 samples is on the train side"),
    ],
)
def test_other_sides_are_refused(said: list[object], told: str) -> None:
    with pytest.raises(DataError, match=told):
        split_samples(targets(1, 2, 3).assign(fold=said), SplitSection(rule="column", column="fold"))


def test_rules_need_their_columns() -> None:
    with pytest.raises(DataError, match=r"no column 'fold' to be split by \(they have id, target, path\)"):
        split_samples(targets(1, 2), SplitSection(rule="column", column="fold"))
    with pytest.raises(DataError, match='no take numbers to deal out; choose the split rule = "stratified"'):
        split_samples(targets(1, 2), SplitSection())
    for rule in ("random", "stratified"):
        with pytest.raises(DataError, match=f"a column 'split', which the rule '{rule}' would write over"):
            split_samples(targets(1, 2).assign(split="train"), SplitSection(rule=rule))


def listed(folder: Path, train: str, validation: str, test: str | None = None) -> SplitSection:
    """The rule of these files of ids."""
    texts = {"train_ids": train, "validation_ids": validation} | ({} if test is None else {"test_ids": test})
    for name, text in texts.items():
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    return SplitSection(rule="files", **{name: folder / f"{name}.txt" for name in texts})


def test_files_list_the_sides(tmp_path: Path) -> None:
    """One id in each line; comments, empty lines, spaces around and a mark at the beginning do not matter."""
    section = listed(tmp_path, "\ufeff# to train on\ns0\n\n  s3 \r\n", "s1", "s2\n")
    assert list(split_samples(targets(1, 2, 3, 4), section)["split"]) == ["train", "validation", "test", "train"]
    assert list(split_samples(targets(1, 2), listed(tmp_path, "s1\n", "s0\n"))["split"]) == ["validation", "train"]


@pytest.mark.parametrize(
    ("files", "told"),
    [
        (("s0\ns9", "s1\ns2"), r"'train_ids\.txt' lists 's9', which is none of the 3 samples"),
        (("s0\ns1", "s1\ns2"), r"'s1' is listed for train in 'train_ids\.txt' and again for validation in 'validation_ids\.txt'"),
        (("s0\ns0", "s1\ns2"), r"'s0' is listed for train in 'train_ids\.txt' and again for train"),
        (("s0", "s1"), r"1 of 3 samples are in no file, the first of them 's2'; list them for a side"),
        (("s0\ns1\ns2", ""), "'validation_ids.txt' is empty"),
        (("s0\ns1\ns2", "# none\n"), "None of the 3 samples is on the validation side by the files"),
    ],
    ids=["unknown", "two sides", "twice", "no side", "empty", "comments only"],
)
def test_files_leave_nothing_open(tmp_path: Path, files: tuple[str, str], told: str) -> None:
    with pytest.raises(InputError, match=told):
        split_samples(targets(1, 2, 3), listed(tmp_path, *files))


def test_files_that_are_no_lists_are_named(tmp_path: Path) -> None:
    section = listed(tmp_path, "s0", "s1")
    (tmp_path / "train_ids.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"'train_ids\.txt' is no text in UTF-8 \(byte 0\)"):
        split_samples(targets(1, 2), section)
    (tmp_path / "train_ids.txt").unlink()
    with pytest.raises(DataError, match=r"'train_ids\.txt' cannot be opened \(No such file"):
        split_samples(targets(1, 2), section)


@given(st.lists(st.integers(-5, 5) | st.floats(-3, 3, allow_nan=False), min_size=2, max_size=12))
def test_ranking_goes_by_the_rank_of_the_target(values: list[float]) -> None:
    """`angle` is the number, whole where all are; `label` counts the different numbers below it."""
    samples = targets(*values)
    if len(set(values)) < 2:
        with pytest.raises(TooFewClassesError, match=r"at least two different targets, but these .* only the target"):
            with_labels(samples, RankingTask())
        return
    labelled = with_labels(samples, RankingTask())
    assert list(labelled["angle"]) == values
    assert list(labelled["label"]) == [len({other for other in values if other < value}) for value in values]
    assert (labelled["angle"].dtype == np.int64) == all(float(value).is_integer() for value in values)
    assert list(samples.columns) == ["id", "target", "path"]


@pytest.mark.parametrize(
    ("given_targets", "labels", "names"),
    [
        (("b", "a", "b"), [1, 0, 1], ["b", "a", "b"]),
        ((10, 9, 2), [2, 1, 0], ["10", "9", "2"]),
        ((0.5, 2.0, 0.5), [0, 1, 0], ["0.5", "2", "0.5"]),
        ((True, False, True), [1, 0, 1], ["1", "0", "1"]),
        (("10", "9", "2"), [0, 2, 1], ["10", "9", "2"]),
    ],
    ids=["text", "whole", "decimal", "yes or no", "text of digits"],
)
def test_classes_are_numbered_in_order(given_targets: tuple[object, ...], labels: list[int], names: list[str]) -> None:
    """Numbers by value, text by letter."""
    labelled = with_labels(targets(*given_targets), ClassificationTask())
    assert (list(labelled["label"]), list(labelled["label_name"])) == (labels, names)
    assert labelled["label"].dtype == np.int64


def test_whole_numbers_are_the_outputs_that_they_name() -> None:
    """With a known number of outputs a missing class moves no other; text, and numbers beyond, have to be as many as the outputs."""
    task = ClassificationTask()
    assert list(with_labels(targets(0, 3, 1), task, classes=10)["label"]) == [0, 3, 1]
    assert list(with_labels(targets(2, 2), task, classes=10)["label"]) == [2, 2]
    assert list(with_labels(targets(36, 0, 72), task, classes=3)["label"]) == [1, 0, 2]
    for values in (("a", "b"), (1, 10)):
        with pytest.raises(DataError, match=r"tells 10 classes apart, but the samples have 2 \(.*whole numbers from 0 to 9"):
            with_labels(targets(*values), task, classes=10)
    with pytest.raises(TooFewClassesError, match="needs at least two different targets, but these 2 samples have a"):
        with_labels(targets("a", "a"), task)


def test_regression_has_numbers_and_no_label() -> None:
    labelled = with_labels(table().assign(target=table()["angle"]), RegressionTask())
    assert labelled["target"].dtype == np.float64
    assert "label" not in labelled
    assert list(labelled["angle"]) == list(labelled["target"])


def test_recordings_keep_their_labels() -> None:
    """Angle and label are what the names of the files say, under each task that has them."""
    samples = table().assign(target=table()["angle"])
    pd.testing.assert_frame_equal(with_labels(samples, RankingTask()), samples)
    classes = with_labels(samples, ClassificationTask())
    assert list(classes["label"]) == list(samples["label"])
    assert set(classes["label_name"]) == {"0", "36", "72"}


@pytest.mark.parametrize(
    "task", [RankingTask(), ClassificationTask(), RegressionTask()], ids=["ranking", "classification", "regression"]
)
@pytest.mark.parametrize("missing", [None, np.nan, "", "  "])
def test_missing_targets_are_named(task: RankingTask | ClassificationTask | RegressionTask, missing: object) -> None:
    others = ("a", "b") if isinstance(missing, str) else (1.0, 2.0)
    with pytest.raises(DataError, match="1 of 3 samples have no target, the first of them 's1'"):
        with_labels(targets(others[0], missing, others[1]), task)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (("a", "b"), "finite numbers, but 's0' has 'a'"),
        ((1.0, np.inf), "finite numbers, but 's1' has 'inf'"),
        ((1, "b"), "target of 's1' is text, but that of 's0' is a number"),
    ],
)
def test_targets_that_are_no_numbers_are_named(values: tuple[object, ...], told: str) -> None:
    for task in (RankingTask(), RegressionTask()):
        with pytest.raises(DataError, match=told):
            with_labels(targets(*values), task)


def test_a_split_changes_nothing_else() -> None:
    """Rows keep their order and values, and the table that was given stays as it was."""
    samples = table(6)
    before = samples.copy()
    pd.testing.assert_frame_equal(split_samples(samples, SplitSection(train=3, validation=2, test=1)).drop(columns="split"), before)
    pd.testing.assert_frame_equal(samples, before)


@given(labels=st.lists(st.integers(0, 4), max_size=14))
def test_every_unordered_pair_once(labels: list[int]) -> None:
    """All pairs of different labels, once each, oriented in sample order, with the larger label winning."""
    rows = [(f"s{row}", label, 36 * label) for row, label in enumerate(labels)]
    samples = pd.DataFrame(rows, columns=["id", "label", "angle"]).astype({"id": object, "label": int, "angle": int})
    pairs = all_pairs(samples)
    expected = [
        (i, j, 1 if labels[i] > labels[j] else -1, 36 * abs(labels[i] - labels[j]))
        for i in range(len(labels))
        for j in range(i + 1, len(labels))
        if labels[i] != labels[j]
    ]
    assert list(pairs[["first", "second", "target", "gap"]].itertuples(index=False, name=None)) == expected
    assert list(pairs["id"]) == [f"s{i}_s{j}" for i, j, *_ in expected]


@settings(deadline=None)
@given(count=st.integers(0, 400), seed=st.integers(0, 1000))
def test_stratified_pairs_are_even_over_gaps(count: int, seed: int) -> None:
    """No gap has two pairs more than another unless that one is used up; order and rows are those of the whole table."""
    pairs = all_pairs(table(4, (0, 36, 72, 108)))
    chosen = stratified_pairs(pairs, count, seed)
    assert len(chosen) == min(count, len(pairs))
    there = pairs["gap"].value_counts()
    taken = chosen["gap"].value_counts().reindex(there.index, fill_value=0)
    open_gaps = taken[taken < there]
    assert open_gaps.empty or taken.max() - open_gaps.min() <= 1
    assert list(chosen["id"]) == [name for name in pairs["id"] if name in set(chosen["id"])]
    pd.testing.assert_frame_equal(chosen, stratified_pairs(pairs, count, seed))


def test_one_angle_cannot_be_ranked() -> None:
    require_classes(table(1))
    with pytest.raises(TooFewClassesError, match="only the angle 36°"):
        require_classes(table(4, (36,)))
    with pytest.raises(TooFewClassesError, match="no sample"):
        require_classes(table(0))


def test_pair_ids_come_apart() -> None:
    """Ids with underscores in them are found among the known ones, whichever they are."""
    pairs = all_pairs(table(2))
    known = set(table(2)["id"])
    assert [split_pair_id(joined, known) for joined in pairs["id"]] == list(zip(pairs["id1"], pairs["id2"], strict=True))


@pytest.mark.parametrize(
    ("joined", "known", "told"),
    [
        ("a_b", {"a"}, "no two samples"),
        ("", {"a", "b"}, "no two samples"),
        ("a_b_c", {"a", "a_b", "b_c", "c"}, "2 different pairs"),
    ],
)
def test_doubtful_pair_ids_are_refused(joined: str, known: set[str], told: str) -> None:
    with pytest.raises(UnknownSampleError, match=told):
        split_pair_id(joined, known)
