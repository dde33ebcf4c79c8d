"""Score files in the formats that exist: written exactly, read tolerantly, updated without losing what is not ours.

<m>_<f>_metadata.json                            {"<pair>": {"tracin_self_influence": number}}, beside samples' records and whatever else
<m>_<f>_influence_metadata.json                  {"<train pair>": {"tracin_influence_<test pair>": number}}
<m>_<f>_per_checkpoint_metadata.json             {"<pair>": {"tracin_self_influence_<checkpoint file>": number}}
<m>_<f>_per_checkpoint_influence_metadata.json   {"<train pair>": {"tracin_influence_<test pair>_<checkpoint file>": number}}

A pair is `<id1>_<id2>`. Beside each file `<name>.provenance.json` says which run wrote which records and keys of it: these are ours to
replace, and everything else in the file stays as it is.
"""

import json
import math
import platform
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from tracin_core.data.files import write_text
from tracin_core.data.samples import split_pair_id
from tracin_core.errors import DataError, UnknownSampleError, ViewError
from tracin_core.records.interchange import SIMULATED_LINE, provenance_path
from tracin_core.records.runs import Run
from tracin_core.scores.view import View

SELF: Final = "tracin_self_influence"
SCORE_NAME: Final = "tracin_influence"
INFO: Final = "tracin_info"
WEIGHT_FILE: Final = re.compile(r".*\.(pt|pth|safetensors)|(.*_)?epoch_?\d+")  # how the name of a checkpoint's file ends
INNER: Final = (SCORE_NAME, SELF, "influence", "self_influence", "value", "score")  # what a nested number is called

Array = npt.NDArray[np.float64]
Records = dict[str, Any]
Content = Literal["metadata", "influence_metadata", "per_checkpoint_metadata", "per_checkpoint_influence_metadata"]


# ---- writing --------------------------------------------------------------------------------------------------------------------


def write_scores(
    folder: Path,
    run: Run,
    view: View,
    *,
    material: str,
    frequency: str,
    self_influence: bool = True,
    influence: bool = True,
    per_checkpoint: bool = False,
    tests: Sequence[str] | None = None,
    score_name: str = SCORE_NAME,
) -> list[Path]:
    """The view's scores are in the files that exist for them, each whole, each with its provenance beside it; gives back their paths.

    What a file holds beyond the scores that this product wrote into it before stays, value by value. Scores of an earlier writing under
    other settings are taken out, so that a file never mixes two; those under the same settings are kept.

    Args:
        per_checkpoint: also what each checkpoint adds, its weight included, so that the parts add up to the whole.
        tests: ids of the tests to write; None: all of the view's. Dead ones are named in the provenance.
        score_name: what the keys of influences begin with.

    Raises:
        ViewError: a score is undefined under the view's measure, or parts were asked for that do not add up to it.
        DataError: a file that is there cannot be read, or two examples have one id.
        NotFoundError: no such test.
    """
    if per_checkpoint and influence and view.measure != "dot":
        raise ViewError(f"What checkpoints add is in units of dot influence, not {view.measure}; choose the measure dot.")
    ids = _distinct(view.train.table["id"], f"training {view.train.noun}s")
    named = list(tests) if tests is not None else view.test.table["id"].tolist() if influence else []
    _distinct(pd.Series(named, dtype=object), f"test {view.train.noun}s")
    sources = _sources(run, view)
    about = _about(run, view, score_name)
    dead = set(view.test.table["id"][view.dead_tests]) if influence else set()
    of_tests = {"tests": named, "dead_tests": [test for test in named if test in dead]}
    written: list[tuple[Content, list[str], Array]] = []
    if self_influence:
        written.append(("metadata", [SELF], view.self_influence()[:, None]))
        if per_checkpoint:
            keys = [f"{SELF}_{source}" for source in sources]
            written.append(("per_checkpoint_metadata", keys, view.self_contributions().T))
    if influence:
        columns = [view.influence(test) for test in named]
        scores = np.stack(columns, axis=1) if columns else np.zeros((len(ids), 0))
        written.append(("influence_metadata", [f"{score_name}_{test}" for test in named], scores))
        if per_checkpoint:
            parts = [view.checkpoint_influence(test) for test in named]
            keys = [f"{score_name}_{test}_{source}" for test in named for source in sources]
            table = np.concatenate(parts, axis=1) if parts else np.zeros((len(ids), 0))
            written.append(("per_checkpoint_influence_metadata", keys, table))
    for _, keys, scores in written:
        _require_finite(ids, keys, scores, view.measure)
    return [
        _merge(folder / f"{material}_{frequency}_{content}.json", ids, keys, scores, {"content": content, **about, **told})
        for content, keys, scores in written
        for told in [of_tests if "influence" in content else {}]
    ]


def _merge(path: Path, ids: list[str], keys: list[str], scores: Array, about: dict[str, Any]) -> Path:
    """The file holds these scores and what was there before, less what an earlier writing of ours left under other settings."""
    records = load_records(path) if path.exists() else {}
    before = read_provenance(path) or {}
    same = before.get("digest") == about["digest"] and before.get("settings") == about["settings"]
    told = dict(about)
    if same:
        told |= {name: _union(before.get(name, []), about[name]) for name in ("tests", "dead_tests") if name in about}
    else:
        removed = _take_out(records, before.get("records", []), before.get("keys", []))
        if removed:
            told["replaced"] = {"run": before.get("run"), "digest": before.get("digest"), "scores": removed}
    for example, row in zip(ids, scores.tolist(), strict=True):
        record = records.setdefault(example, {})
        if not isinstance(record, dict):
            raise DataError(f"'{path.name}' has {_shown(record)} under '{example}', where a record is needed; move that file away.")
        record.update(zip(keys, row, strict=True))
    told["records"] = _union(before.get("records", []), ids) if same else ids
    told["keys"] = _union(before.get("keys", []), keys) if same else keys
    told["kept"] = _foreign(records, told["records"], told["keys"])
    if before.get("updates"):
        told["updates"] = before["updates"]
    write_with_provenance(path, records_text(records), told)
    return path


def _take_out(records: Records, ids: Iterable[str], keys: Iterable[str]) -> int:
    """These keys of these records are gone, and with them what is empty then; gives back how many there were."""
    removed, ours = 0, list(keys)
    for example in ids:
        record = records.get(example)
        if not isinstance(record, dict):
            continue
        removed += sum(record.pop(key, None) is not None for key in ours)
        if not record:
            del records[example]
    return removed


def _foreign(records: Records, ids: Iterable[str], keys: Iterable[str]) -> dict[str, int]:
    """How much of the file is not ours: records, and values in them."""
    own, ours = set(ids), set(keys)
    values = sum(
        len(record) - len(ours & record.keys() if example in own else ())
        for example, record in records.items()
        if isinstance(record, dict)
    )
    return {"records": len(records.keys() - own), "values": values}


def _union(one: Iterable[str], other: Iterable[str]) -> list[str]:
    return list(dict.fromkeys([*one, *other]))


def _about(run: Run, view: View, score_name: str) -> dict[str, Any]:
    """Where the scores come from, and what decides them."""
    loss: Any = getattr(view.train, "loss", None)
    return {
        "run": run.id,
        "name": run.name,
        "digest": run.digest,
        "simulated": run.simulated,
        **({"mark": SIMULATED_LINE} if run.simulated else {}),
        "created": datetime.now().astimezone().isoformat(timespec="seconds"),
        "settings": {
            "loss": view.train.described if loss is None else asdict(loss),
            "measure": view.measure,
            "test_quantity": getattr(view.test, "quantity", None),
            "checkpoints": list(view.checkpoint_names),
            "checkpoint_weights": view.checkpoint_weights.tolist(),
            "score_name": score_name,
        },
        "noun": view.train.noun,
        "samples": {side: _named(table) for side, table in (("train", view.train_samples), ("test", view.test_samples))},
        "checkpoints": [{name: row.get(name) for name in ("epoch", "source", "digest")} for row in run.manifest.checkpoints],
        "recipe": run.recipe.to_dict(),
        "versions": {
            "python": platform.python_version(),
            "numpy": version("numpy"),
            "run": dict(run.manifest.versions),
        },
    }


def _named(samples: pd.DataFrame) -> list[Records]:
    """Ids, and angles where samples have one: enough to read joined ids and to form the pairs again."""
    columns = [name for name in ("id", "angle") if name in samples]
    return [dict(zip(columns, row, strict=True)) for row in samples[columns].to_numpy(dtype=object).tolist()]


def _sources(run: Run, view: View) -> list[str]:
    """The name of each checkpoint's file, in the view's order."""
    files = {f"epoch {row['epoch']}": str(row["source"]) for row in run.manifest.checkpoints}
    return [files.get(name, name) for name in view.checkpoint_names]


def _distinct(ids: pd.Series, what: str) -> list[str]:
    twice = ids[ids.duplicated()]
    if len(twice):
        raise DataError(f"'{twice.iloc[0]}' names two {what}, whose scores would stand under one key; rename a sample.")
    return [str(example) for example in ids]


def _require_finite(ids: list[str], keys: list[str], scores: Array, measure: str) -> None:
    if np.isfinite(scores).all():
        return
    row, column = (int(place) for place in np.argwhere(~np.isfinite(scores))[0])
    raise ViewError(
        f"'{keys[column]}' of '{ids[row]}' is {scores[row, column]} under the measure {measure}, which no score file can hold; choose the "
        f"measure dot."
    )


# ---- records and provenance -----------------------------------------------------------------------------------------------------


def write_with_provenance(path: Path, text: str, provenance: dict[str, Any]) -> None:
    """The file holds this text, and its provenance, which names the file's digest, lies beside it. Each is whole at every instant."""
    write_text(path, text)
    told = {"file": path.name, "sha256": sha256(text.encode("utf-8")).hexdigest(), **provenance}
    write_text(provenance_path(path), records_text(told))


def read_provenance(path: Path) -> dict[str, Any] | None:
    """What is told beside this file of how it came about; None where nothing is.

    Raises:
        DataError: something is, and cannot be read.
    """
    beside = provenance_path(path)
    return load_records(beside) if beside.is_file() else None


def records_text(records: Records) -> str:
    """As JSON, a line per record, which is quick where there are millions of numbers.

    A NaN that somebody else left in the file stays what it is; ours never get here.
    """
    lines = (
        f"  {json.dumps(name, ensure_ascii=False)}: {json.dumps(value, ensure_ascii=False)}" for name, value in records.items()
    )
    return "{\n" + ",\n".join(lines) + "\n}\n"


def load_records(path: Path) -> Records:
    """The object in this JSON file.

    Raises:
        DataError: it cannot be read, is none, or has a key twice, of which one would be lost.
    """
    try:
        found = json.loads(path.read_bytes().decode("utf-8-sig"), object_pairs_hook=_without_repeats)
    except (OSError, ValueError, RecursionError) as failure:
        reason = failure.strerror if isinstance(failure, OSError) else " ".join(str(failure).split())
        raise DataError(f"'{path.name}' cannot be read as JSON ({reason}); mend it, or write it again.") from failure
    if not isinstance(found, dict):
        raise DataError(f"'{path.name}' holds {_shown(found)} and not records by id; choose a file of scores or of samples.")
    return found


def _without_repeats(pairs: list[tuple[str, Any]]) -> Records:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key '{twice}' is there twice")
    return found


def _shown(value: Any) -> str:
    return f"a {type(value).__name__}" if isinstance(value, dict | list) else repr(value)[:40]


# ---- samples' records after an exclusion -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MetadataUpdate:
    """What an update of a metadata file did."""

    path: Path
    marked: tuple[str, ...]  # ids of records that say `excluded` now
    missing: tuple[str, ...]  # samples on the list that the file has no record of
    earlier: tuple[str, ...]  # marked before, and not on this list: they stay marked


def update_sample_metadata(
    path: Path, exclusions: pd.DataFrame, provenance: dict[str, Any], *, when: datetime | None = None
) -> MetadataUpdate:
    """Each entry's record says `excluded`, why (a line appended to its `notes`), and `tracin_info`; all else in the file is as it was.

    A list of pairs marks records of pairs, made where there are none, and not the pairs' samples, which stay in the training with their
    other pairs. A list of samples marks samples' records; a sample without one is given back as missing.

    Args:
        exclusions: as `View.exclusions` returns it.
        provenance: of the list: run, name, digest, rule, simulated and what else is known.

    Raises:
        DataError: the file cannot be read, or a record or its notes are of a form that nothing can be appended to; nothing is written.
    """
    moment = when or datetime.now()
    records = load_records(path)
    of_pairs = "id1" in exclusions.columns
    marked: list[str] = []
    missing: list[str] = []
    for entry in exclusions.to_dict(orient="records"):
        name = _record_of(records, entry) if of_pairs else str(entry["id"])
        if name not in records and not of_pairs:
            missing.append(name)
            continue
        record = records.setdefault(name, {})
        if not isinstance(record, dict):
            raise DataError(f"'{path.name}' has {_shown(record)} under '{name}', where a record is needed; mend it first.")
        record |= _marks(path, name, record, entry, provenance, moment)
        marked.append(name)
    said = {name for name, record in records.items() if isinstance(record, dict) and record.get("excluded") is True}
    stay = said - set(marked)
    earlier = [name for name in records if name in stay]
    before = read_provenance(path) or {}
    update = {**provenance, "excluded": marked, "missing": missing, "updated": f"{moment:%Y-%m-%d %H:%M:%S}"}
    told = {name: value for name, value in before.items() if name not in ("file", "sha256")}
    write_with_provenance(path, records_text(records), {**told, "updates": [*before.get("updates", []), update]})
    return MetadataUpdate(path, tuple(marked), tuple(missing), tuple(earlier))


def _record_of(records: Records, entry: dict[Any, Any]) -> str:
    """The name under which the file has this pair, in either order."""
    turned = f"{entry['id2']}_{entry['id1']}"
    return turned if turned in records and entry["id"] not in records else str(entry["id"])


def _marks(
    path: Path, name: str, record: Records, entry: dict[Any, Any], provenance: dict[str, Any], moment: datetime
) -> dict[str, Any]:
    occurrences, average = int(entry["occurrences"]), float(entry["average_influence"])
    rule = ", ".join(f"{key}={value}" for key, value in provenance.get("rule", {}).items())
    note = (
        f"{moment:%Y-%m-%d %H:%M:%S}: excluded by TracIn Studio, {occurrences} negative occurrences, average influence {average:g}"
        f"{f' ({rule})' if rule else ''}, run {provenance.get('run', 'unknown')}"
        f"{f'; {SIMULATED_LINE}' if provenance.get('simulated') else ''}"
    )
    return {
        "excluded": True,
        "notes": _appended(path, name, record.get("notes"), note),
        INFO: {
            "exclusion_date": f"{moment:%Y-%m-%d %H:%M:%S}",
            "negative_occurrences": occurrences,
            "average_influence": average,
            "affected_test_samples": list(entry["affected_tests"]),
        },
    }


def _appended(path: Path, name: str, notes: Any, note: str) -> Any:
    if notes is None or notes == "":
        return note
    if isinstance(notes, str):
        return f"{notes}\n{note}"
    if isinstance(notes, list):
        return [*notes, note]
    raise DataError(
        f"The notes of '{name}' in '{path.name}' are {_shown(notes)}, to which nothing can be appended; make them text."
    )


# ---- reading --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Unusable:
    """A score that is none: where it stands, and what stands there."""

    record: str
    key: str
    told: str

    def __str__(self) -> str:
        return f"'{self.key}' of '{self.record}' is {self.told}"


@dataclass(frozen=True)
class ScoreFile:
    """What a score file holds. NaN: no usable number is there; `unusable` names those that are written and are none."""

    path: Path
    noun: Literal["pair", "sample"]
    rows: pd.DataFrame  # id, and of pairs id1, id2: in the file's order
    tests: pd.DataFrame  # the same of the tests
    self_influence: Array  # [N]
    influence: Array  # [N, M]
    checkpoints: tuple[str, ...]  # names of files, in the order met
    self_contributions: Array  # [C, N]
    contributions: Array  # [C, N, M]
    samples: dict[str, Records] = field(default_factory=dict)  # records of samples that are mixed in
    unusable: tuple[Unusable, ...] = ()
    unread: tuple[str, ...] = ()  # keys that are neither scores nor of samples
    provenance: dict[str, Any] | None = None  # of this very content; None also where the file was changed since


@dataclass(frozen=True)
class _Key:
    """What a score's key says: which test (None: of the example itself) and which checkpoint (None: of all)."""

    test: str | None
    checkpoint: str | None


def read_scores(
    path: Path, sample_ids: Collection[str], *, score_name: str = SCORE_NAME, records: Records | None = None
) -> ScoreFile:
    """Every score of the file, flat or nested, of pairs or of samples, and what else stands in it, by name; nothing is dropped or mended.

    Args:
        sample_ids: the samples that the file is about; joined ids are split by matching these.
        records: what the file holds, where it was loaded already (`load_records`).

    Raises:
        DataError: the file cannot be read, has no score, or mixes scores of pairs with scores of samples.
        UnknownSampleError: a record, or the test of a key, names no such sample or pair, or can be read as more than one.
    """
    reader = _Reader(path, frozenset(sample_ids), score_name)
    for name, record in (load_records(path) if records is None else records).items():
        reader.take(name, record)
    return reader.result()


class _Reader:
    """Goes through the records of a file once."""

    def __init__(self, path: Path, known: frozenset[str], score_name: str) -> None:
        self.path, self.known, self.score_name = path, known, score_name
        self.rows: list[tuple[str, ...]] = []
        self.tests: dict[str, tuple[str, ...]] = {}
        self.checkpoints: dict[str, None] = {}
        self.values: list[tuple[npt.NDArray[np.int64], Array]] = []  # of each row: which keys, and their numbers
        self.samples: dict[str, Records] = {}
        self.unusable: list[Unusable] = []
        self.unread: list[str] = []
        self._keys: dict[tuple[str, bool], _Key | None] = {}
        self._numbered: dict[_Key, int] = {}
        self._layouts: dict[tuple[object, ...], tuple[list[str], npt.NDArray[np.int64]]] = {}

    def take(self, name: str, record: Any) -> None:
        if not isinstance(record, dict):
            self.unread.append(name)
            return
        scored, places = self._layout(record, of_pair=name not in self.known or self._is_pair(name))
        if name in self.known:
            self.samples[name] = {key: value for key, value in record.items() if key not in set(scored)}
        elif not scored:
            self.unread.append(name)
        if len(scored) < len(record):
            others = [key for key in record if key not in set(scored)]
            self.unread += [f"{name}: {key}" for key in others if key != INFO and key.startswith((SELF, self.score_name))]
        if scored:
            self.rows.append(self._example(name))
            self.values.append((places, self._numbers(name, record, scored)))

    def _layout(self, record: Records, *, of_pair: bool) -> tuple[list[str], npt.NDArray[np.int64]]:
        """Which of a record's keys are scores, and their numbers; read once for all records with the same keys."""
        shape = (of_pair, *record)
        if shape not in self._layouts:
            read = {key: self._key(key, of_pair) for key in record}
            scores = {key: said for key, said in read.items() if said is not None}
            for said in scores.values():
                self._meet(said)
            self._layouts[shape] = list(scores), np.array([self._numbered[said] for said in scores.values()], dtype=np.int64)
        return self._layouts[shape]

    def _meet(self, key: _Key) -> None:
        self._numbered.setdefault(key, len(self._numbered))
        if key.test is not None and key.test not in self.tests:
            self.tests[key.test] = self._example(key.test)
        if key.checkpoint is not None:
            self.checkpoints.setdefault(key.checkpoint)

    def _numbers(self, name: str, record: Records, scored: list[str]) -> Array:
        values = [record[key] for key in scored]
        if set(map(type, values)) == {float}:
            numbers = np.array(values)
            if np.isfinite(numbers).all():
                return numbers
        read = [_number(value, key, self.score_name) for key, value in zip(scored, values, strict=True)]
        self.unusable += [Unusable(name, key, told) for key, (_, told) in zip(scored, read, strict=True) if told]
        return np.array([number for number, _ in read])

    def _example(self, name: str) -> tuple[str, ...]:
        """(id,) of a sample, (id, id1, id2) of a pair."""
        if name in self.known and not self._is_pair(name):
            return (name,)
        if name in self.known:
            raise UnknownSampleError(
                f"'{name}' in '{self.path.name}' names a sample and also a pair of samples; rename the sample, and write the file again."
            )
        try:
            return (name, *split_pair_id(name, self.known))
        except UnknownSampleError as failure:
            raise UnknownSampleError(f"'{self.path.name}' cannot be read: {str(failure)[0].lower()}{str(failure)[1:]}") from failure

    def _key(self, key: str, of_pair: bool) -> _Key | None:
        """What a key of a pair's record, or of a sample's, says of a score; None if it is none."""
        if (key, of_pair) not in self._keys:
            self._keys[key, of_pair] = self._read_key(key, self._is_pair if of_pair else self.known.__contains__)
        return self._keys[key, of_pair]

    def _read_key(self, key: str, is_test: Callable[[str], bool]) -> _Key | None:
        if key == SELF:
            return _Key(None, None)
        if key.startswith(f"{SELF}_"):
            return _Key(None, key.removeprefix(f"{SELF}_"))
        if key == INFO or not key.startswith(f"{self.score_name}_"):
            return None
        told = key.removeprefix(f"{self.score_name}_")
        readings = [_Key(told, None)] if is_test(told) else []
        for at, letter in enumerate(told):
            if letter == "_" and WEIGHT_FILE.fullmatch(told[at + 1 :]) and is_test(told[:at]):
                readings.append(_Key(told[:at], told[at + 1 :]))
        if len(readings) != 1:
            raise UnknownSampleError(
                f"The key '{key}' in '{self.path.name}' names "
                + (
                    f"no test of these {len(self.known)} samples"
                    if not readings
                    else f"{len(readings)} different tests or checkpoints"
                )
                + "; give the samples that the file was made with."
            )
        return readings[0]

    def _is_pair(self, name: str) -> bool:
        return any(name[:at] in self.known and name[at + 1 :] in self.known for at, letter in enumerate(name) if letter == "_")

    def result(self) -> ScoreFile:
        if not self.rows:
            raise DataError(
                f"'{self.path.name}' holds no score ('{SELF}' or '{self.score_name}_<test>'); choose a file of scores, or name its scores."
            )
        kinds = {len(example) for example in (*self.rows, *self.tests.values())}
        if len(kinds) > 1:
            one = next(example[0] for example in (*self.rows, *self.tests.values()) if len(example) == 1)
            raise DataError(
                f"'{self.path.name}' has scores of pairs and, under '{one}', of a sample; keep the two in files of their own."
            )
        noun: Literal["pair", "sample"] = "pair" if kinds == {3} else "sample"
        columns = ["id", "id1", "id2"] if noun == "pair" else ["id"]
        counts = (len(self.checkpoints), len(self.rows), len(self.tests))
        own, own_parts = np.full(counts[1], np.nan), np.full(counts[:2], np.nan)
        scores, parts = np.full(counts[1:], np.nan), np.full(counts, np.nan)
        column = {test: place for place, test in enumerate(self.tests)}
        layer = {name: place for place, name in enumerate(self.checkpoints)}
        of_key = np.array([(column.get(key.test or "", -1), layer.get(key.checkpoint or "", -1)) for key in self._numbered])
        row = np.repeat(np.arange(counts[1]), [len(places) for places, _ in self.values])
        test, checkpoint = of_key[np.concatenate([places for places, _ in self.values])].T
        number = np.concatenate([numbers for _, numbers in self.values])
        of_test, of_checkpoint = test >= 0, checkpoint >= 0
        for chosen, target, index in (
            (~of_test & ~of_checkpoint, own, (row,)),
            (~of_test & of_checkpoint, own_parts, (checkpoint, row)),
            (of_test & ~of_checkpoint, scores, (row, test)),
            (of_test & of_checkpoint, parts, (checkpoint, row, test)),
        ):
            target[tuple(axis[chosen] for axis in index)] = number[chosen]
        return ScoreFile(
            self.path,
            noun,
            pd.DataFrame(self.rows, columns=columns, dtype=object).astype(str),
            pd.DataFrame(list(self.tests.values()), columns=columns, dtype=object).astype(str),
            own,
            scores,
            tuple(self.checkpoints),
            own_parts,
            parts,
            self.samples,
            tuple(self.unusable),
            tuple(self.unread),
            self._own_provenance(),
        )

    def _own_provenance(self) -> dict[str, Any] | None:
        told = read_provenance(self.path)
        same = told is not None and told.get("sha256") == sha256(self.path.read_bytes()).hexdigest()
        return told if same else None


def _number(value: Any, key: str, score_name: str) -> tuple[float, str]:
    """The number, and what is there in its place if it is none."""
    if isinstance(value, dict):
        held = [name for name in dict.fromkeys((key, score_name, *INNER)) if name in value]
        return _number(value[held[0]], key, score_name) if len(held) == 1 else (math.nan, "a record without one number")
    if value is None:
        return math.nan, "null"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan, _shown(value)
    try:
        number = float(value)
    except OverflowError:
        return math.nan, "infinity"
    return (
        (number, "")
        if math.isfinite(number)
        else (math.nan, "NaN" if math.isnan(number) else "infinity" if number > 0 else "-infinity")
    )
