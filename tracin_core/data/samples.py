"""The table of samples, its split into sides, and the ranking pairs between samples.

A samples table has one row per sample, sorted by id: id, label, angle, material, frequency, sequence, path (relative to the data root),
and after a split the column `split`: train, validation or test.
"""

from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from tracin_core.errors import DataError, TooFewClassesError, UnknownSampleError
from tracin_core.recipe import SplitSection


def require_classes(samples: pd.DataFrame) -> None:
    """At least two different labels are present.

    Raises:
        TooFewClassesError: there are fewer, so no pair can be formed.
    """
    angles = sorted(samples["angle"].unique())
    if len(angles) < 2:
        there = f"only the angle {angles[0]}°" if angles else "no sample"
        raise TooFewClassesError(
            f"Ranking needs at least two different angles, but these {len(samples)} samples have {there}; choose a folder with more "
            f"classes (deg000, deg036, ...), or another split."
        )


def split_samples(samples: pd.DataFrame, section: SplitSection) -> pd.DataFrame:
    """The same rows with the column `split`, decided by the rule of the section and by nothing else.

    `sequence`: the distinct take numbers, permuted by NumPy's legacy generator with the section's seed, are dealt out: first `train`
    takes, then `validation`, then `test`; takes beyond these numbers go to the test side. `random`: the first `floor(train_fraction * n)`
    of torch's `randperm` train, the others validate.

    Raises:
        DataError: there are fewer takes than the rule asks for.
    """
    if section.rule == "random":
        return samples.assign(split=_random_sides(len(samples), section))
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
    return samples.assign(split=[side.get(int(take), "test") for take in samples["sequence"]])


def _random_sides(count: int, section: SplitSection) -> list[str]:
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
