"""The table of samples, its split into sides, and the ranking pairs between samples.

A samples table has one row per sample, sorted by id: id, target, path (relative to the data root, '' without one) and what else is known
of it (of recordings: angle, material, frequency, sequence). The task adds label, label_name or angle, the split adds `split`: train,
validation or test.
"""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from tracin_core.data.checks import open_regular
from tracin_core.errors import DataError, TooFewClassesError, UnknownSampleError
from tracin_core.recipe import SplitSection, TaskSection

RECORDED: Final = frozenset({"material", "frequency", "sequence"})  # columns that only recordings have all three of
SIDES: Final = {"train": "train", "validation": "validation", "val": "validation", "valid": "validation", "test": "test"}
DECILES: Final = 10
LARGEST_LIST: Final = 2**26  # bytes of a file of ids


# ---- labels -----------------------------------------------------------------------------------------------------------------


def with_labels(samples: pd.DataFrame, task: TaskSection, *, classes: int | None = None) -> pd.DataFrame:
    """The same rows with the columns that the task needs, made of `target`.

    Ranking: `angle`, the target (int64 where all are whole), and `label`, its rank. Classification: `label`, the place of the target among
    all of them in order, and `label_name`, the target as text. Regression: `target` as float64, and no `label`.

    Args:
        classes: outputs of the classifier, 2 for one with a single output. Whole numbers below it are labels as they stand, also if some
            are missing, and other targets have to be as many. None: as many as there are different targets.

    Raises:
        DataError: a target is missing, or not what the task needs; names the first sample.
        TooFewClassesError: all targets are equal.
    """
    targets = _targets(samples)
    if task.kind == "classification":
        names = targets.map(_name_of)
        codes = _codes(targets, classes)
        return samples.assign(label=codes, label_name=names.astype("str"))
    numbers = _numbers(samples, targets, task.kind)
    if task.kind == "regression":
        return samples.assign(target=numbers).drop(columns="label", errors="ignore")
    whole = bool((numbers == np.floor(numbers)).all()) and bool((numbers.abs() < 2**53).all())
    angle = numbers.astype("int64") if whole else numbers
    labelled = samples.assign(angle=angle, label=angle.rank(method="dense").astype("int64") - 1)
    require_classes(labelled)
    return labelled


def require_labels(samples: pd.DataFrame, task: TaskSection, outputs: int) -> None:
    """The labels of these samples are places among so many outputs of the model, as they would be if that number had been known.

    Raises:
        DataError: they are not: the model has more outputs than the data have classes, and labels would be those of other outputs.
    """
    if task.kind != "classification" or "target" not in samples:
        return
    known = with_labels(samples, task, classes=max(outputs, 2))
    moved = np.flatnonzero(known["label"].to_numpy() != samples["label"].to_numpy())
    if moved.size:
        sample = samples.iloc[moved[0]]
        raise DataError(
            f"The model has {outputs} outputs, of which target {sample['target']} of '{sample['id']}' is number "
            f"{known['label'].iloc[moved[0]]}, not number {sample['label']} as among the {samples['label'].nunique()} classes of these "
            f"data; write outputs = {outputs} under [model]."
        )


def _targets(samples: pd.DataFrame) -> pd.Series:
    """The targets as numbers or as text, all of them told.

    Raises:
        DataError: names the first sample whose target is missing, or that numbers and text are mixed.
    """
    targets = samples["target"]
    missing = targets.isna() | targets.map(lambda target: isinstance(target, str) and not target.strip()).astype(bool)
    if missing.any():
        name = samples.loc[missing, "id"].iloc[0]
        raise DataError(
            f"{int(missing.sum())} of {len(samples)} samples have no target, the first of them '{name}'; fill it in, or leave them out."
        )
    if pd.api.types.is_numeric_dtype(targets):
        return targets.astype("int64") if pd.api.types.is_bool_dtype(targets) else targets
    text = targets.map(lambda target: isinstance(target, str)).astype(bool)
    if text.any() and not text.all():
        one, other = (samples.loc[kind, "id"].iloc[0] for kind in (text, ~text))
        raise DataError(f"The target of '{one}' is text, but that of '{other}' is a number; write all of them in one way.")
    return targets.astype("str") if text.all() else pd.to_numeric(targets)


def _codes(targets: pd.Series, classes: int | None) -> pd.Series:
    """The label of each target."""
    known = sorted(targets.unique())
    numbers = pd.api.types.is_numeric_dtype(targets)
    if classes is not None and numbers and all(target in range(classes) for target in known):
        return targets.astype("int64")
    shown = ", ".join(_name_of(target) for target in known[:6]) + (", ..." if len(known) > 6 else "")
    if len(known) < 2:
        raise TooFewClassesError(
            f"Classification needs at least two different targets, but these {len(targets)} samples have {shown or 'none'}; choose data "
            f"with more classes."
        )
    if classes is not None and len(known) != classes:
        raise DataError(
            f"The model tells {classes} classes apart, but the samples have {len(known)} ({shown}), so that nobody knows which output is "
            f"which; give the classes as whole numbers from 0 to {classes - 1}, or choose a model with {len(known)} outputs."
        )
    return targets.map({target: code for code, target in enumerate(known)}).astype("int64")


def _name_of(target: object) -> str:
    """The target as people write it."""
    if isinstance(target, float) and target.is_integer() and abs(target) < 2**53:  # numpy's float64 is one
        return str(int(target))
    return str(float(target) if isinstance(target, float) else target)


def _numbers(samples: pd.DataFrame, targets: pd.Series, kind: str) -> pd.Series:
    """The targets as finite float64.

    Raises:
        DataError: names the first sample whose target is none.
    """
    numeric = pd.api.types.is_numeric_dtype(targets)
    numbers = targets.astype("float64") if numeric else None
    if numbers is None or not np.isfinite(numbers).all():
        row = 0 if numbers is None else int(np.argmin(np.isfinite(numbers)))
        raise DataError(
            f"{kind.capitalize()} needs targets that are finite numbers, but '{samples['id'].iloc[row]}' has '{targets.iloc[row]}'; mend "
            f'them, or choose the task kind = "classification".'
        )
    return numbers


def require_classes(samples: pd.DataFrame) -> None:
    """At least two different values of `angle`, the number that is ranked, are present.

    Raises:
        TooFewClassesError: there are fewer, so no pair can be formed.
    """
    values = sorted(samples["angle"].unique())
    if len(values) >= 2:
        return
    recorded = set(samples.columns) >= RECORDED
    what, unit, cure = (
        ("angles", "the angle {}°", "choose a folder with more classes (deg000, deg036, ...)")
        if recorded
        else ("targets", "the target {}", "choose data with more of them")
    )
    there = "only " + unit.format(values[0]) if values else "no sample"
    raise TooFewClassesError(
        f"Ranking needs at least two different {what}, but these {len(samples)} samples have {there}; {cure}, or another split."
    )


# ---- the split --------------------------------------------------------------------------------------------------------------


def split_samples(samples: pd.DataFrame, section: SplitSection) -> pd.DataFrame:
    """The same rows with the column `split`, decided by the rule of the section and by nothing else.

    `sequence`: the distinct take numbers, permuted by NumPy's legacy generator with the section's seed, are dealt out: first `train`
    takes, then `validation`, then `test`; takes beyond these numbers go to the test side. `random`: the first `floor(train_fraction * n)`
    of torch's `randperm` train, the others validate. `stratified`: see `stratified_sides`. `column`: the metadata column says train,
    validation (also val, valid) or test. `files`: every sample's id stands in one of the files.

    Raises:
        DataError: the rule cannot be followed, or leaves the training or validation side empty; with numbers.
        UnknownSampleError: a file lists an id that no sample has.
    """
    if "split" in samples.columns and not (section.rule == "column" and section.column == "split"):
        raise DataError(
            f"The data have a column 'split', which the rule '{section.rule}' would write over; choose rule = \"column\" with "
            f'column = "split", or rename it.'
        )
    sides = RULES[section.rule](samples, section)
    return samples.assign(split=sides)


def _taken_sides(samples: pd.DataFrame, section: SplitSection) -> list[str]:
    """The rule `sequence`."""
    if "sequence" not in samples.columns:
        raise DataError('The samples have no take numbers to deal out; choose the split rule = "stratified" or "random".')
    takes = np.sort(samples["sequence"].unique())
    needed = section.train + section.validation + section.test
    if len(takes) < needed:
        raise DataError(
            f"The split asks for {section.train} + {section.validation} + {section.test} takes, but the recordings have {len(takes)} "
            f"(numbers {takes[0]} to {takes[-1]}); ask for fewer, or record more."
        )
    dealt = np.random.RandomState(section.seed).permutation(takes)
    side = {int(take): "train" for take in dealt[: section.train]}
    side |= {int(take): "validation" for take in dealt[section.train : section.train + section.validation]}
    return [side.get(int(take), "test") for take in samples["sequence"]]


def _random_sides(samples: pd.DataFrame, section: SplitSection) -> list[str]:
    """The rule `random`."""
    count = len(samples)
    order = torch_permutation(count, section.seed)
    trained = set(order[: int(np.floor(section.train_fraction * count))].tolist())
    return ["train" if place in trained else "validation" for place in range(count)]


def torch_permutation(count: int, seed: int) -> npt.NDArray[np.int64]:
    """What `torch.randperm(count, generator=torch.Generator().manual_seed(seed))` gives, without torch.

    Both draw 32-bit numbers of the same Mersenne Twister; place i swaps with place i + (draw mod (count - i)).
    """
    generator = np.random.RandomState(seed)
    order = np.arange(count, dtype=np.int64)
    for place in range(count - 1):
        draw = int(generator.randint(0, 2**32, dtype=np.uint64))
        other = place + draw % (count - place)
        order[place], order[other] = order[other], order[place]
    return order


def stratified_sides(samples: pd.DataFrame, section: SplitSection) -> list[str]:
    """The rule `stratified`: every side has its share of each group to within two samples, and of the whole to within one.

    Groups are the labels; numbers of more than ten different values (and targets to be met) are grouped by their deciles. The samples,
    group by group and shuffled within it by NumPy's legacy generator, are dealt out one by one, each to the side that lacks most of its
    share of those dealt so far. Shares carry over from group to group, so that small groups do not all give their odd sample to one side.

    Raises:
        DataError: a side would be empty.
    """
    shares = stratified_shares(section)
    groups = _groups(samples)
    generator = np.random.RandomState(section.seed)
    order = [
        int(row)
        for group in generator.permutation(np.unique(groups))
        for row in generator.permutation(np.flatnonzero(groups == group))
    ]
    counts = dict.fromkeys(shares, 0)
    sides = [""] * len(samples)
    for dealt, row in enumerate(order, start=1):
        side = max(shares, key=lambda one: shares[one] * dealt - counts[one])
        sides[row] = side
        counts[side] += 1
    if not all(counts.values()):
        asked = ", ".join(f"{share:.3g} for {side}" for side, share in shares.items())
        given = ", ".join(str(count) for count in counts.values())
        raise DataError(f"{len(samples)} samples in shares of {asked} make sides of {given}; ask for other shares, or add samples.")
    return sides


def stratified_shares(section: SplitSection) -> dict[str, float]:
    """What each side gets of the whole; a side that gets nothing is left out."""
    left = 1 - section.train_fraction
    validation = left / 2 if section.validation_fraction is None else section.validation_fraction
    shares = {"train": section.train_fraction, "validation": validation, "test": left - validation}
    return {side: share for side, share in shares.items() if share > 1e-9}  # 1 - 0.9 - 0.1 is not 0 in floating point


def _groups(samples: pd.DataFrame) -> npt.NDArray[np.int64]:
    """The number of each sample's group."""
    values = samples["label"] if "label" in samples.columns else samples["target"]
    if "label_name" in samples.columns or values.nunique() <= DECILES:
        return np.asarray(values.rank(method="dense"), dtype=np.int64)
    rank = values.rank(method="first") - 1
    return np.asarray(rank * DECILES // len(samples), dtype=np.int64)


def _column_sides(samples: pd.DataFrame, section: SplitSection) -> list[str]:
    """The rule `column`."""
    if section.column not in samples.columns:
        there = ", ".join(str(name) for name in samples.columns[:12])
        raise DataError(f"The samples have no column '{section.column}' to be split by (they have {there}); name one of them.")
    said = samples[section.column]
    for name, side in zip(samples["id"], said, strict=True):
        if side not in SIDES:
            raise DataError(
                f"The column '{section.column}' says '{side}' of the sample '{name}'; write train, validation (or val, valid) or test."
            )
    return _filled([SIDES[side] for side in said], f"the column '{section.column}'")


def _listed_sides(samples: pd.DataFrame, section: SplitSection) -> list[str]:
    """The rule `files`."""
    files = {"train": section.train_ids, "validation": section.validation_ids, "test": section.test_ids}
    known, sides = set(samples["id"]), dict[str, tuple[str, str]]()
    for side, path in files.items():
        for name in [] if path is None else read_ids(path):
            if name not in known:
                raise UnknownSampleError(
                    f"'{path.name if path else ''}' lists '{name}', which is none of the {len(known)} samples; correct it, or remove it."
                )
            if name in sides:
                raise DataError(
                    f"'{name}' is listed for {sides[name][0]} in '{sides[name][1]}' and again for {side} in '{path.name if path else ''}'; "
                    f"list each sample once."
                )
            sides[name] = (side, path.name if path else "")
    lost = [name for name in samples["id"] if name not in sides]
    if lost:
        raise DataError(
            f"{len(lost)} of {len(samples)} samples are in no file, the first of them '{lost[0]}'; list them for a side (those in test_ids "
            f"are trained on by nobody), or take them out of the data."
        )
    return _filled([sides[name][0] for name in samples["id"]], "the files")


def read_ids(path: Path) -> list[str]:
    """The ids in a text file, one in each line; what begins with # is a comment, and empty lines are none.

    Raises:
        UnreadableSampleError: the file cannot be opened, or is no text.
    """
    with open_regular(path, largest=LARGEST_LIST) as file:
        raw = file.read()
    try:
        lines = raw.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as failure:
        raise DataError(
            f"'{path.name}' is no text in UTF-8 (byte {failure.start}); save it as plain text, an id in each line."
        ) from failure
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def _filled(sides: list[str], where: str) -> list[str]:
    """The sides, with something to train on and something to test on.

    Raises:
        DataError: one of the two is empty.
    """
    for side in ("train", "validation"):
        if side not in sides:
            raise DataError(f"None of the {len(sides)} samples is on the {side} side by {where}; put some there.")
    return sides


RULES: Final[dict[str, Callable[[pd.DataFrame, SplitSection], list[str]]]] = {
    "sequence": _taken_sides,
    "random": _random_sides,
    "stratified": stratified_sides,
    "column": _column_sides,
    "files": _listed_sides,
}


# ---- pairs ------------------------------------------------------------------------------------------------------------------


def all_pairs(samples: pd.DataFrame) -> pd.DataFrame:
    """All unordered pairs of samples with different labels, oriented in sample order; columns as `pair_table`."""
    return pairs_of(samples, every_draw(len(samples)))


def every_draw(count: int) -> pd.DataFrame:
    """Every unordered pair of positions once, equal labels included: first, second, multiplicity (1)."""
    first, second = np.triu_indices(count, 1)
    return pd.DataFrame({"first": first, "second": second, "multiplicity": 1})


def random_draws(counts: Sequence[int], seed: int) -> list[pd.DataFrame]:
    """n (n - 1) / 2 draws of two distinct of n positions, for each n in turn: first, second (as drawn), multiplicity.

    From NumPy's legacy generator, `RandomState(seed).choice(n, 2, replace=False)` per draw, as existing trainings do, training side first.
    Draws know nothing of labels: equal ones are included, since another label can make a pair of them.
    """
    generator = np.random.RandomState(seed)
    drawn = []
    for count in counts:
        number = count * (count - 1) // 2
        ends = np.array([generator.choice(count, 2, replace=False) for _ in range(number)], dtype=np.int64).reshape(number, 2)
        table = pd.DataFrame(ends, columns=["first", "second"])
        drawn.append(table.groupby(["first", "second"], sort=True).size().rename("multiplicity").reset_index())
    return drawn


def listed_draws(samples: pd.DataFrame, pairs: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """The pairs of these two ids each, in the given orientation; a repeated pair counts as often as it is listed.

    Raises:
        UnknownSampleError: an id is not among the samples, or a pair joins a sample with itself.
    """
    place = {str(sample): row for row, sample in enumerate(samples["id"])}
    for pair in pairs:
        strangers = [sample for sample in pair if sample not in place]
        if strangers or pair[0] == pair[1]:
            told = f"'{strangers[0]}', which is none of these {len(place)} samples" if strangers else f"'{pair[0]}' twice"
            raise UnknownSampleError(
                f"The listed pair {tuple(pair)} names {told}; list pairs of two training samples by their ids."
            )
    table = pd.DataFrame([(place[one], place[two]) for one, two in pairs], columns=["first", "second"], dtype=np.int64)
    return table.groupby(["first", "second"], sort=True).size().rename("multiplicity").reset_index()


def pairs_of(samples: pd.DataFrame, draws: pd.DataFrame, *, oriented: bool = False) -> pd.DataFrame:
    """The pairs that these draws make under the samples' labels: equal labels make none, each pair stands once with its multiplicity.

    Args:
        oriented: (a, b) and (b, a) stay two pairs, as drawn; else they are one, in sample order.
    """
    labels = samples["label"].to_numpy()
    ends = draws[["first", "second"]].to_numpy()
    ends = ends if oriented else np.sort(ends, axis=1)
    kept = labels[ends[:, 0]] != labels[ends[:, 1]]
    key = ends[kept, 0] * len(samples) + ends[kept, 1]
    known, place = np.unique(key, return_inverse=True)
    multiplicity = np.bincount(place, weights=draws["multiplicity"].to_numpy()[kept], minlength=len(known)).astype(np.int64)
    first, second = np.divmod(known, max(len(samples), 1))
    return pair_table(samples, first, second, multiplicity)


def pair_table(
    samples: pd.DataFrame,
    first: npt.NDArray[np.int64],
    second: npt.NDArray[np.int64],
    multiplicity: npt.NDArray[np.int64] | None = None,
) -> pd.DataFrame:
    """The pairs at these positions.

    Columns: id (`<id1>_<id2>`), id1, id2, first, second (positions in `samples`), target (+1 if label[first] > label[second], else -1),
    angle1, angle2, gap (degrees between them), multiplicity (how often the pair is trained on in an epoch).
    """
    labels, angles = samples["label"].to_numpy(), samples["angle"].to_numpy()
    one, two = (samples["id"].astype("str").take(ends).reset_index(drop=True) for ends in (first, second))
    return pd.DataFrame(
        {
            "id": one + "_" + two,
            "id1": one,
            "id2": two,
            "first": first.astype(np.int64),
            "second": second.astype(np.int64),
            "target": np.where(labels[first] > labels[second], 1, -1),
            "angle1": angles[first],
            "angle2": angles[second],
            "gap": np.abs(angles[first] - angles[second]),
            "multiplicity": np.ones(len(first), dtype=np.int64) if multiplicity is None else multiplicity,
        }
    )


def stratified_pairs(pairs: pd.DataFrame, count: int, seed: int = 0) -> pd.DataFrame:
    """`count` of the pairs, as equally many of each angle gap as there are, in their original order."""
    if count >= len(pairs):
        return pairs
    shuffled = pairs.sample(frac=1.0, random_state=seed)
    turn = shuffled.groupby("gap").cumcount()
    chosen = shuffled.assign(turn=turn).sort_values(["turn", "gap"], kind="stable").index[:count]
    return pairs.loc[np.sort(chosen)].reset_index(drop=True)


def split_pair_id(joined: str, known_ids: Collection[str]) -> tuple[str, str]:
    """The two sample ids of `<id1>_<id2>`, found among the known ids.

    Raises:
        UnknownSampleError: no split gives two known ids, or more than one does.
    """
    cuts = [place for place, letter in enumerate(joined) if letter == "_"]
    found = [(joined[:cut], joined[cut + 1 :]) for cut in cuts if joined[:cut] in known_ids and joined[cut + 1 :] in known_ids]
    if len(found) != 1:
        told = "no two samples of this data set" if not found else f"{len(found)} different pairs, such as {' and '.join(found[0])}"
        raise UnknownSampleError(f"The pair id '{joined}' names {told}; give the two sample ids as the data set writes them.")
    return found[0]
