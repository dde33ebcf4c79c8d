"""Score files that came from elsewhere, as a run of the workspace: scores alone, no kernels, with a verdict on what they are.

runs/<id>/run.json              kind "scores", the verdict under `health`, and the files that it was made of
runs/<id>/scores.safetensors    float64: ends of the pairs, and the numbers as the files have them
"""

import inspect
import re
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

import numpy as np
import numpy.typing as npt
import pandas as pd
import safetensors.numpy

from tracin_core.data.files import write_whole
from tracin_core.data.readers import reader_for, sample_digest
from tracin_core.data.recordings import NAME, find_recordings
from tracin_core.data.samples import pair_table, with_labels
from tracin_core.errors import DamagedBlockError, DataError, ViewError
from tracin_core.recipe import Recipe
from tracin_core.records.datasets import dataset_key
from tracin_core.records.maintenance import SCORES
from tracin_core.records.manifest import Chunk, Manifest, chunk_digest
from tracin_core.records.runs import Run
from tracin_core.records.score_checks import NOT_PER_PAIR, checked
from tracin_core.records.score_files import SCORE_NAME, ScoreFile, load_records, read_provenance, read_scores
from tracin_core.records.store import BlockStore, digest_of
from tracin_core.scores.imported import UNSAID, ImportedPairs, ImportedScores, ImportedView, refuse
from tracin_core.scores.losses import PairLoss
from tracin_core.scores.view import View

if TYPE_CHECKING:
    from tracin_core.records.workspace import Workspace

Array = npt.NDArray[np.float64]
CHECKPOINT_COLUMNS: Final = ["epoch", "source", "digest", "learning_rate", "optimizer", "validation_loss", "validation_accuracy"]
SHOWN: Final = 5


# ---- the run --------------------------------------------------------------------------------------------------------------------


class UnsaidLoss(PairLoss):
    """The loss of scores whose files do not name it."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "margin", float("nan"))
        object.__setattr__(self, "name", "unsaid")

    def describe(self) -> str:
        return UNSAID


class ImportedRun(Run):
    """A run that was made of score files. What it has no kernels for is refused in one sentence."""

    def __init__(self, folder: Path, store: BlockStore, datasets: Path) -> None:
        super().__init__(folder, store, datasets)
        self.loss = PairLoss(**self.manifest.loss) if self.manifest.loss else UnsaidLoss()
        self.lacks = tuple(
            part for part in ("self_influence", "influence", "contributions") if part not in self.manifest.scores["parts"]
        )
        said = {check["name"]: str(check["detail"]) for check in self.manifest.health if not check["passed"]}
        self.verdict = tuple(said[name] for name in NOT_PER_PAIR if name in said)
        self.digest = digest_of(
            [self.manifest.scores["sha256"], [c.digest for side in self.manifest.chunks.values() for c in side]]
        )

    @cached_property
    def scores(self) -> dict[str, npt.NDArray[Any]]:
        """The stored arrays.

        Raises:
            DamagedBlockError: they are not as they were stored.
        """
        path = self._folder / SCORES
        raw = path.read_bytes() if path.is_file() else b""
        if sha256(raw).hexdigest() != self.manifest.scores["sha256"]:
            raise DamagedBlockError(
                f"The scores of run '{self.id}' are not as they were stored ({len(raw):,} bytes); import the score files again."
            )
        return safetensors.numpy.load(raw)

    @cached_property
    def train_pairs(self) -> pd.DataFrame:
        return pair_table(self.splits["train"], *self.scores["train_ends"].T)

    @cached_property
    def test_pairs(self) -> pd.DataFrame:
        return pair_table(self.splits["validation"], *self.scores["test_ends"].T)

    @cached_property
    def checkpoints(self) -> pd.DataFrame:
        """One row per checkpoint that a file names; none where only sums were given."""
        return pd.DataFrame(list(self.manifest.checkpoints)).reindex(columns=CHECKPOINT_COLUMNS)

    @property
    def summed_epochs(self) -> list[int]:
        return [int(row["epoch"]) for row in self.manifest.checkpoints]

    @property
    def _arguments(self) -> dict[str, Any]:
        return {}

    def health(self) -> pd.DataFrame:
        """The verdict of the import: check, passed, value, detail."""
        checks = pd.DataFrame(list(self.manifest.health), columns=["name", "passed", "value", "detail"])
        return checks.rename(columns={"name": "check"})

    def view(self, **settings: Any) -> View:
        """The scores as the files have them.

        Raises:
            ViewError: a setting asks for something else than what is there.
        """
        usual = inspect.signature(Run.view).parameters
        for name, value in settings.items():
            if name not in usual:
                raise ViewError(f"There is no setting '{name}' of a view; choose from {', '.join(list(usual)[1:])}.")
            if value is not None and value != usual[name].default and not (name == "relabel" and not value):
                refuse(f"scores with another {name}")
        return self._view

    @cached_property
    def _view(self) -> View:
        train = ImportedPairs(self.train_pairs, self.splits["train"], self.loss.describe())
        test = ImportedPairs(self.test_pairs, self.splits["validation"], self.loss.describe())
        parts: dict[str, Any] = {name: self.scores.get(name) for name in ("self_influence", "influence")}
        parts |= {name: self.scores.get(name) for name in ("self_contributions", "contributions")}
        names = tuple(str(row["source"]) for row in self.manifest.checkpoints)
        return ImportedView(train, test, ImportedScores(**parts, checkpoints=names))

    @property
    def kernels(self) -> NoReturn:
        refuse("kernels")

    def methods(self, **_: Any) -> NoReturn:
        refuse("other attribution methods")

    @property
    def training(self) -> NoReturn:
        refuse("what its checkpoints record of the training")

    def checkpoint_weights(self, *_: Any, **__: Any) -> NoReturn:
        refuse("other weights of its checkpoints")

    def _seed(self, draw_seed: int | None) -> int:
        if draw_seed is None:
            refuse("the seed that its pairs were drawn with")
        return draw_seed


def opened(folder: Path, store: BlockStore, datasets: Path) -> Run:
    """The run in this folder, computed or imported."""
    run = Run(folder, store, datasets)
    return ImportedRun(folder, store, datasets) if run.kind == "scores" else run


# ---- the import -----------------------------------------------------------------------------------------------------------------


def import_scores(
    workspace: "Workspace",
    *,
    self_influence_file: Path | None = None,
    influence_file: Path | None = None,
    per_checkpoint_file: Path | None = None,
    per_checkpoint_influence_file: Path | None = None,
    data_root: Path | None = None,
    samples_metadata: Path | None = None,
    name: str | None = None,
    score_name: str = SCORE_NAME,
) -> Run:
    """The scores of these files are a run of the workspace, which every page shows; what they are was judged, and the verdict is kept.

    Nothing of the files is changed or mended. A pair or test without all of its numbers is left out, and named in the verdict. The same
    files, imported again, are the same run.

    Args:
        per_checkpoint_file, per_checkpoint_influence_file: what each checkpoint adds; None: curves by checkpoint are not there.
        data_root: the recordings, from which samples, angles, pictures and sounds are taken.
        samples_metadata: records of samples by id, with their angle. Those in the score files, and their provenance, count too.
        name: of the run; None: that of the files.
        score_name: what the keys of influences begin with.

    Raises:
        DataError: no file was given, a file cannot be read, samples or their angles are unknown, or nothing is left to show.
        UnknownSampleError: a pair id cannot be split into two known samples in exactly one way.
    """
    given = {
        "self_influence": self_influence_file,
        "influence": influence_file,
        "self_contributions": per_checkpoint_file,
        "contributions": per_checkpoint_influence_file,
    }
    files = {part: Path(path) for part, path in given.items() if path is not None}
    if not {"self_influence", "influence"} & set(files):
        raise DataError("No file of scores was given; name the file of self-influences, that of influences, or both.")
    records = {path: load_records(path) for path in files.values()}
    known = known_samples(files.values(), data_root, samples_metadata, loaded=records)
    read = {part: read_scores(path, known, score_name=score_name, records=records[path]) for part, path in files.items()}
    for found in read.values():
        if found.noun != "pair":
            raise DataError(
                f"'{found.path.name}' has scores of samples, not of pairs; compute a run from the checkpoints for these."
            )
    kept = assemble(read)
    samples, sides = _samples_of(kept, known)
    recipe = _recipe(list(files.values()), samples, data_root, name, read)
    dataset, samples = _with_digests(workspace, recipe, samples, data_root is not None)
    return _stored(workspace, recipe, samples, sides, kept, read, dataset)


def known_samples(
    files: Iterable[Path],
    data_root: Path | None,
    samples_metadata: Path | None = None,
    *,
    loaded: Mapping[Path, dict[str, Any]] | None = None,
) -> dict[str, dict[str, Any]]:
    """Every sample that is known of, by id: angle, material, frequency, sequence, path, as far as they are told.

    Args:
        loaded: what files hold that were loaded already.

    Raises:
        DataError: none is, or two sources give one sample different angles.
    """
    known: dict[str, dict[str, Any]] = {}
    if data_root is not None:
        found = find_recordings(Path(data_root)).set_index("id", drop=False).to_dict(orient="index")
        _add(known, {str(name): {str(key): value for key, value in row.items()} for name, row in found.items()}, str(data_root))
    scored = list(files)
    for path in [*([] if samples_metadata is None else [Path(samples_metadata)]), *scored]:
        records = (loaded or {}).get(path) or load_records(path)
        _add(known, {name: record for name, record in records.items() if is_sample(name, record)}, path.name)
    for path in scored:
        sides = (read_provenance(path) or {}).get("samples", {})
        _add(known, {row["id"]: row for side in sides.values() for row in side}, f"the provenance of {path.name}")
    if not known:
        raise DataError(
            "It is unknown which samples the score files are of, and a joined pair id does not tell where one ends; give the folder of the "
            "recordings, or a file of the samples' records with their angles."
        )
    return known


def is_sample(name: str, record: Any) -> bool:
    """Whether a record of a metadata file is of a sample: it says its angle, or its own id. Records of pairs do neither."""
    return isinstance(record, dict) and ("angle" in record or record.get("id") == name)


def _add(known: dict[str, dict[str, Any]], records: Mapping[str, Mapping[str, Any]], source: str) -> None:
    for name, record in records.items():
        new = _sample(name, record)
        before = known.setdefault(name, {})
        if before.get("angle", new["angle"]) != new["angle"] and new["angle"] is not None and before["angle"] is not None:
            raise DataError(
                f"'{name}' is at {before['angle']:g} degrees by one source and at {new['angle']:g} by {source}; correct one of them."
            )
        for key, value in new.items():
            if before.get(key) is None:
                before[key] = value


def _sample(name: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """What a record says of a sample, and what its name says where the record does not."""
    named = NAME.fullmatch(name)
    said = {} if named is None else named.groupdict()
    angle = record.get("angle", said.get("angle"))
    sequence = record.get("sequence", record.get("seq_num", said.get("sequence")))
    return {
        "angle": _whole(angle),
        "material": record.get("material", said.get("material")),
        "frequency": record.get("frequency", said.get("frequency")),
        "sequence": _whole(sequence),
        "path": record.get("path"),
    }


def _whole(value: Any) -> int | float | None:
    """The number that is said, whole where it is; None where none is."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    if not np.isfinite(number):
        return None
    return int(number) if number.is_integer() else number


@dataclass(frozen=True)
class Assembled:
    """The pairs that have all of their numbers, and what was left out."""

    rows: pd.DataFrame  # id, id1, id2
    tests: pd.DataFrame
    arrays: dict[str, Array]  # self_influence, influence, self_contributions, contributions, as far as given
    checkpoints: tuple[str, ...]
    left_out: tuple[str, ...]  # in words


def assemble(read: Mapping[str, ScoreFile]) -> Assembled:
    """The files' numbers on the pairs that all files have, without pairs and tests that lack one; what is left out is told.

    A pair stands under its name in the first file; another file may have it the other way round, since it is the same constraint.

    Raises:
        DataError: the files have no pair in common, or none has all of its numbers.
    """
    told = [f"{found.path.name}: {unusable}" for found in read.values() for unusable in found.unusable]
    first = read["influence"] if "influence" in read else read["self_influence"]
    rows, tests = first.rows, first.tests if "influence" in read else first.tests.head(0)
    layers = in_order(dict.fromkeys(name for part, found in read.items() for name in found.checkpoints if "contributions" in part))
    arrays: dict[str, Array] = {}
    for part, found in read.items():
        values = {
            "self_influence": found.self_influence,
            "influence": found.influence,
            "self_contributions": found.self_contributions,
            "contributions": found.contributions,
        }[part]
        if values.size == 0 or np.isnan(values).all():
            raise DataError(f"'{found.path.name}' holds no {part.replace('_', ' ')}; choose the file that does.")
        places = _places(found.rows, rows)
        if part == "influence":
            arrays[part] = values
        elif part == "self_influence":
            arrays[part] = _taken(values, 0, places)
        else:
            order = _places(pd.DataFrame({"id": found.checkpoints}), pd.DataFrame({"id": layers}))
            aligned = _taken(_taken(values, 0, order), 1, places)
            arrays[part] = aligned if part == "self_contributions" else _taken(aligned, 2, _places(found.tests, tests))
        elsewhere = len(found.rows) - int((np.unique(places[places >= 0])).size)
        told += [f"{found.path.name}: {elsewhere} pairs that {first.path.name} does not have"] if elsewhere else []
    return _without_gaps(rows, tests, arrays, layers, told, first.path.name)


def _places(found: pd.DataFrame, wanted: pd.DataFrame) -> npt.NDArray[np.int64]:
    """Where each wanted row stands among those found, in either order of a pair; -1: nowhere."""
    place = {name: at for at, name in enumerate(found["id"])}
    if "id1" not in wanted:
        return np.array([place.get(name, -1) for name in wanted["id"]], dtype=np.int64)
    turned = wanted["id2"] + "_" + wanted["id1"]
    return np.array(
        [place.get(name, place.get(other, -1)) for name, other in zip(wanted["id"], turned, strict=True)], dtype=np.int64
    )


def _taken(values: Array, axis: int, places: npt.NDArray[np.int64]) -> Array:
    """These places along an axis, NaN where there is none."""
    shape = list(values.shape)
    shape[axis] = 1
    padded = np.concatenate([values, np.full(shape, np.nan)], axis=axis)
    return np.asarray(np.take(padded, places, axis=axis))


def _without_gaps(
    rows: pd.DataFrame, tests: pd.DataFrame, arrays: dict[str, Array], layers: tuple[str, ...], told: list[str], source: str
) -> Assembled:
    whole_tests = np.ones(len(tests), dtype=bool)
    if "influence" in arrays:  # a test that most pairs lack is left out, rather than most pairs
        whole_tests = np.isnan(arrays["influence"]).mean(axis=0) <= 0.5
    tests_of = {"influence": 1, "contributions": 2}
    arrays = {part: np.compress(whole_tests, v, axis=tests_of[part]) if part in tests_of else v for part, v in arrays.items()}
    whole = np.ones(len(rows), dtype=bool)
    for part, values in arrays.items():
        axis = 1 if part.endswith("contributions") else 0
        whole &= ~np.isnan(np.moveaxis(values, axis, 0).reshape(len(rows), -1)).any(axis=1)
    if not whole.any() or not (whole_tests.any() or tests.empty):
        raise DataError(
            f"None of the {len(rows)} pairs of '{source}' has all of its numbers "
            f"({'; '.join(told[:3]) or 'other files lack them'}); import fewer files together, or write them again."
        )
    for what, table, kept in (("test", tests, whole_tests), ("training pair", rows, whole)):
        names = table["id"][~kept].tolist()
        told = [*told, *([f"{len(names)} {what}s without all numbers: {listed(names)}"] if names else [])]
    axes = {"self_influence": 0, "influence": 0, "self_contributions": 1, "contributions": 1}
    return Assembled(
        rows[whole].reset_index(drop=True),
        tests[whole_tests].reset_index(drop=True),
        {part: np.compress(whole, values, axis=axes[part]) for part, values in arrays.items()},
        layers,
        tuple(told),
    )


def listed(names: Collection[str]) -> str:
    """The first few of the names."""
    return ", ".join(list(names)[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


# ---- samples and files of the run ------------------------------------------------------------------------------------------------


def _samples_of(kept: Assembled, known: Mapping[str, dict[str, Any]]) -> tuple[pd.DataFrame, dict[str, list[str]]]:
    """The table of the samples that the pairs are of, and the ids of either side.

    Raises:
        DataError: the angle of one is unknown, or all angles are equal.
    """
    sides = {side: sorted({*table["id1"], *table["id2"]}) for side, table in (("train", kept.rows), ("validation", kept.tests))}
    ids = sorted({*sides["train"], *sides["validation"]})
    unknown = [name for name in ids if known[name]["angle"] is None]
    if unknown:
        raise DataError(
            f"The angle of {len(unknown)} samples is unknown, '{unknown[0]}' for one; give the folder of the recordings, or records with "
            f"an angle."
        )
    table = pd.DataFrame([{"id": name, **known[name]} for name in ids])
    trained = set(sides["train"])
    table = table.assign(
        target=table["angle"],
        path=table["path"].fillna("").astype(str),
        split=["train" if name in trained else "validation" for name in ids],
        **{name: table[name].fillna("").astype(str) for name in ("material", "frequency")},
    )
    if table["sequence"].isna().any():
        table = table.drop(columns="sequence")
    recipe_free = Recipe.from_dict({"data": {"root": ".", "material": "", "frequency": ""}, "checkpoints": {"folder": "."}})
    return with_labels(table, recipe_free.task), sides


def _recipe(
    files: list[Path], samples: pd.DataFrame, data_root: Path | None, name: str | None, read: Mapping[str, ScoreFile]
) -> Recipe:
    """What the run is said to be of. Its folder of checkpoints is that of the score files: there are no others."""
    stem = files[0].stem
    for ending in ("_influence_metadata", "_metadata"):
        stem = stem.removesuffix(ending)
    kinds = {column: sorted(set(samples[column]) - {""}) for column in ("material", "frequency")}
    material = kinds["material"][0] if len(kinds["material"]) == 1 else stem.rpartition("_")[0] or stem
    frequency = kinds["frequency"][0] if len(kinds["frequency"]) == 1 else "all" if kinds["frequency"] else stem.rpartition("_")[2]
    simulated = any((found.provenance or {}).get("simulated") for found in read.values())
    return Recipe.from_dict(
        {
            "name": name or stem,
            "simulated": simulated,
            "data": {"root": data_root or files[0].parent, "material": material, "frequency": frequency},
            "checkpoints": {"folder": files[0].parent},
        }
    )


def _with_digests(workspace: "Workspace", recipe: Recipe, samples: pd.DataFrame, there: bool) -> tuple[str, pd.DataFrame]:
    """The data set's key, and the samples with the digests that their previews are named by; of recordings that are there, also those."""
    if not there:
        return "", samples.assign(digest=[digest_of(["imported", name]) for name in samples["id"]])
    key = dataset_key(recipe, workspace.root / "plugins")
    missing = samples["id"][samples["path"] == ""].tolist()
    if missing:
        raise DataError(
            f"'{recipe.data.place.name}' has no recording of {len(missing)} samples, '{missing[0]}' for one; give the folder that the "
            f"scores are of."
        )
    reader = reader_for(recipe.data)
    digests = []
    for _, sample in samples.iterrows():
        values = reader.read(samples[samples["id"] == sample["id"]])[0]
        digests.append(sample_digest(values))
        stem = workspace.root / "datasets" / key / "previews" / digests[-1]
        if not stem.with_suffix(".png").exists():
            reader.preview(sample, values, stem)
    return key, samples.assign(digest=digests)


def _stored(
    workspace: "Workspace",
    recipe: Recipe,
    samples: pd.DataFrame,
    sides: dict[str, list[str]],
    kept: Assembled,
    read: Mapping[str, ScoreFile],
    dataset: str,
) -> Run:
    """The run is in the workspace, whole and sealed."""
    labels = samples.set_index("id")["label"]
    different = {
        side: labels[table["id1"]].to_numpy() != labels[table["id2"]].to_numpy()
        for side, table in (("train", kept.rows), ("test", kept.tests))
    }
    loss = _loss_told(read)
    health, arrays, rows, tests = checked(kept.rows, kept.tests, kept.arrays, different, kept.left_out, loss.get("name"))
    if rows.empty:
        raise DataError(
            "Every pair of the score files is of two equal angles, which make no ranking pair; check the samples' angles."
        )
    met = {"train": {*rows["id1"], *rows["id2"]}, "validation": {*tests["id1"], *tests["id2"]}}
    sides = {side: [name for name in ids if name in met[side]] for side, ids in sides.items()}
    stored = {
        "train_ends": _ends(rows, sides["train"]),
        "test_ends": _ends(tests, sides["validation"]),
        **{part: np.ascontiguousarray(values) for part, values in arrays.items()},
    }
    raw = safetensors.numpy.save(stored)
    total = sha256(raw).hexdigest()
    run_id = digest_of([total, samples.to_csv(index=False), recipe.digest()])[:12]
    folder = workspace.root / "runs" / run_id
    digests = samples.set_index("id")["digest"]
    manifest = Manifest(
        id=run_id,
        recipe=recipe.to_dict(),
        created=time.time(),
        layers=(),
        checkpoints=_checkpoint_rows(kept.checkpoints),
        groups=(),
        chunks={
            side: (Chunk(tuple(ids), chunk_digest([str(digests[name]) for name in ids])),) if ids else ()
            for side, ids in sides.items()
        },
        loss=loss,
        dataset=dataset,
        health=tuple(check.to_dict() for check in health),
        kind="scores",
        scores={"sha256": total, "parts": sorted(arrays), "files": [_source(part, found) for part, found in read.items()]},
        who=workspace.who,
    )
    write_whole(folder / SCORES, [raw])
    manifest.write(folder, samples)
    workspace.register_run(run_id, recipe, state="done")
    return workspace.run(run_id)


def _ends(pairs: pd.DataFrame, ids: list[str]) -> npt.NDArray[np.int64]:
    """Positions of the pairs' samples on their side, [pairs, 2]."""
    place = {name: at for at, name in enumerate(ids)}
    return np.array(
        [[place[one], place[two]] for one, two in zip(pairs["id1"], pairs["id2"], strict=True)], dtype=np.int64
    ).reshape(-1, 2)


def _loss_told(read: Mapping[str, ScoreFile]) -> dict[str, Any]:
    """The loss that the files' provenance names; empty where none does, or two differ."""
    told = [(found.provenance or {}).get("settings", {}).get("loss") for found in read.values()]
    same = all(loss == told[0] for loss in told)
    return dict(told[0]) if same and isinstance(told[0], dict) else {}


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Names of checkpoints' files by the number that each ends with, never by its letters; as they come where one has none."""
    met = list(names)
    return (
        tuple(sorted(met, key=lambda name: number_of(name) or 0))
        if all(number_of(name) is not None for name in met)
        else tuple(met)
    )


def number_of(name: str) -> int | None:
    """The last number in a name."""
    found = re.findall(r"\d+", name)
    return int(found[-1]) if found else None


def _checkpoint_rows(names: tuple[str, ...]) -> tuple[dict[str, Any], ...]:
    """One row per checkpoint's file, its epoch as its name says; their places where the names do not tell them apart."""
    numbers = [number_of(name) for name in names]
    told = None not in numbers and len(set(numbers)) == len(names)
    return tuple({"epoch": numbers[at] if told else at + 1, "source": name, "digest": ""} for at, name in enumerate(names))


def _source(part: str, found: ScoreFile) -> dict[str, Any]:
    told = found.provenance or {}
    return {
        "part": part,
        "file": found.path.name,
        "sha256": sha256(found.path.read_bytes()).hexdigest(),
        "run": told.get("run"),
        "digest": told.get("digest"),
        "unread": list(found.unread),
    }
