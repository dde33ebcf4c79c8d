"""One directory, one object: runs, jobs, exports and the folders that may be read.

workspace/
    tracin.sqlite3     catalogue of runs, jobs, blocks and exclusion decisions
    checkpoints/       canonical weights, second moments and curvatures, named by their SHA-256
    datasets/<key>/    stored splits, sealed chunks, previews of the samples
    kernels/           content-addressed blocks
    runs/<id>/         run.json, samples.csv, verdicts.jsonl
    exports/<run>/     exclusion lists with their provenance
    calibrations/<id>/ what was trained on errors planted on purpose, and what came of it
    evaluations/<id>/  what was retrained without a list, and what came of it
    faithfulness/<id>/ what was trained on subsets, and what came of it
    findings/          saved views, one file each
    recordings/        simulated recordings of the demo
    trainings/         checkpoints written by this product's own training
    uploads/<id>/      what came in through the browser, under the names that it had
"""

import copy
import os
import shutil
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any, Final

import pandas as pd

from tracin_core.data.files import read_json
from tracin_core.data.images import SUFFIXES as PICTURES
from tracin_core.data.plugins import plugin_file
from tracin_core.data.readers import reader_for
from tracin_core.data.samples import with_labels
from tracin_core.errors import InputError, NotFoundError, OutsideRootsError, UnknownSampleError, WorkspaceError
from tracin_core.recipe import ModelSection, PluginData, PluginModel, RankerModel, Recipe, file_stem
from tracin_core.records.catalogue import Catalogue
from tracin_core.records.checkpoint_files import SUFFIXES, list_checkpoints
from tracin_core.records.doctor import Finding, examine, readiness
from tracin_core.records.evidence import evidence, require_reason
from tracin_core.records.imports import opened
from tracin_core.records.interchange import exclusion_files, known_exclusions, match_exclusions, provenance_of, read_exclusions
from tracin_core.records.jobs import Job, JobQueue
from tracin_core.records.maintenance import (
    CATALOGUE,
    Damage,
    Garbage,
    Rebuilt,
    Verification,
    collect_garbage,
    rebuild_catalogue,
    seal_run,
    verify,
)
from tracin_core.records.manifest import Manifest
from tracin_core.records.plugins import list_plugins, plugin_digest
from tracin_core.records.runs import Run
from tracin_core.records.score_files import MetadataUpdate, update_sample_metadata
from tracin_core.records.store import BlockStore, digest_of
from tracin_core.records.verdicts import Decision, Verdict, history, record, standing
from tracin_core.records.zarr_export import export_zarr
from tracin_core.scores.selection import SuspectScore

__all__ = [
    "Damage",
    "Finding",
    "Workspace",
    "collect_garbage",
    "examine",
    "open_workspace",
    "readiness",
    "rebuild_catalogue",
    "verify",
]

FOLDERS = (
    "calibrations", "checkpoints", "datasets", "evaluations", "exports", "faithfulness", "findings", "jobs", "kernels", "plugins",
    "recordings", "runs", "trainings", "uploads",
)  # fmt: skip
TRAINING_FILES = ("training.json", "analysis.toml")  # beside the checkpoints
USUAL_LOSSES = {"ranking": "margin", "classification": "cross_entropy", "regression": "squared_error"}  # of this product's training
SEARCH_DEPTH = 5
SEARCH_LIMIT = 500
# Of the workspace, where nobody's own files are: what an evaluation trains on purpose badly is offered to no one.
OWN_FOLDERS: Final = (
    "checkpoints", "kernels", "runs", "jobs", "exports", "datasets", "plugins", "calibrations", "evaluations", "faithfulness", "findings",
)  # fmt: skip


def open_workspace(path: str | Path) -> "Workspace":
    """The workspace in this directory, made if it is not there."""
    return Workspace(Path(path))


class Workspace:
    """What was computed, what is being computed, and what was decided about it."""

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.realpath(root))
        try:
            for name in FOLDERS:
                (self.root / name).mkdir(parents=True, exist_ok=True)
        except OSError as failure:
            raise WorkspaceError(
                f"The workspace '{root}' cannot be made ({failure.strerror}); choose a directory that you may write to."
            ) from failure
        self.catalogue = Catalogue(self.root / CATALOGUE)
        self.store = BlockStore(self.root / "kernels")
        self.queue = JobQueue(self.catalogue, self.root)
        self.roots = named_roots([self.root, *configured_roots()])
        self.who = ""

    def by(self, who: str) -> "Workspace":
        """The same workspace, in which what is started and what is decided bears this person's name."""
        same = copy.copy(self)
        same.who = who
        return same

    # ---- runs ---------------------------------------------------------------------------------------------------------------

    def runs(self) -> pd.DataFrame:
        """One row per run, newest first: id, name, simulated, state, created, data (what it is of, in words), task."""
        rows = []
        for row in self.catalogue.read("SELECT * FROM run ORDER BY created DESC"):
            recipe = Recipe.model_validate_json(row["recipe"])
            rows.append(
                {
                    "id": row["id"],
                    "name": row["name"],
                    "simulated": recipe.simulated,
                    "state": row["state"],
                    "created": row["created"],
                    "data": recipe.data.title,
                    "task": recipe.task.kind,
                }
            )
        return pd.DataFrame(rows, columns=["id", "name", "simulated", "state", "created", "data", "task"])

    def run(self, run_id: str) -> Run:
        """The finished run with this id.

        Raises:
            NotFoundError: there is none, or it is not finished.
        """
        if not self.catalogue.read("SELECT 1 FROM run WHERE id = ?", (run_id,)):
            raise NotFoundError(
                f"There is no run '{run_id}' in this workspace; choose one from the list, or ask whoever sent the link."
            )
        return opened(self.root / "runs" / run_id, self.store, self.root / "datasets")

    def compute(self, recipe: Recipe, *, wait: bool = True, on_change: Callable[[Job], None] | None = None) -> Run | Job:
        """The run of this recipe: from the cache at once if nothing changed, else computed in the background.

        Args:
            wait: True: return the finished run. False: return the job (or the run, if it is cached).
            on_change: called with the job at every look while waiting.

        Raises:
            InputError: the recipe's files are not there; checked before anything starts.
            JobFailedError, JobCancelledError: the computation ended otherwise.
        """
        run_id = self.run_id(recipe)
        if self.is_done(run_id):
            return self.run(run_id)
        self.register_run(run_id, recipe)
        request = {"recipe": recipe.to_dict(), "run_id": run_id}
        job = self.queue.submit("analysis", request, title=recipe.name, run_id=run_id, who=self.who)
        if not wait:
            return job
        self.queue.wait(job.id, on_change=on_change)
        return self.run(run_id)

    def run_id(self, recipe: Recipe) -> str:
        """Names the computation: the recipe, the files it would read (place, size, time of change) and the plugins it would run.

        Raises:
            InputError: one of them is not there, or the samples do not suit the task.
        """
        place = recipe.data.place
        named = {path.name: path for path in list_checkpoints(recipe.checkpoints.folder, recipe.checkpoints.prefix)} | {
            path.relative_to(place).as_posix() if path.is_relative_to(place) else str(path): path
            for path in self.data_files(recipe)
        }
        facts = [[name, path.stat().st_size, path.stat().st_mtime_ns] for name, path in named.items()]
        forms = [form for form in (recipe.model, recipe.data) if isinstance(form, PluginModel | PluginData)]
        plugins = [plugin_digest(self.root / "plugins", form.name) for form in forms]
        return digest_of([recipe.digest(), facts, plugins] if plugins else [recipe.digest(), facts])[:12]

    def data_files(self, recipe: Recipe) -> list[Path]:
        """The files that the recipe's samples and sides are read from, found to be there and to suit the task; none of a plugin's.

        Raises:
            InputError: they are not, or do not.
        """
        data, split = recipe.data, recipe.split
        listed = [path for path in (split.train_ids, split.validation_ids, split.test_ids) if path is not None]
        if isinstance(data, PluginData):
            plugin_file(self.root / "plugins", data.name)
            return listed
        samples = with_labels(reader_for(data).list(), recipe.task, classes=recipe.classes)
        return [*([data.place / path for path in samples["path"]] if data.place.is_dir() else [data.place]), *listed]

    def is_done(self, run_id: str) -> bool:
        """The run is finished and all of its blocks are whole; a damaged one makes it a run to be computed again."""
        folder = self.root / "runs" / run_id
        if not (folder / "run.json").is_file():
            return False
        manifest = Manifest.read(folder)
        return not self.store.missing(key for group in manifest.groups for key in manifest.kernel_keys(group))

    def register_run(self, run_id: str, recipe: Recipe, state: str = "computing") -> None:
        """The catalogue knows the run; one that is done is sealed against later damage."""
        if state == "done":
            seal_run(self.root / "runs" / run_id)
        with self.catalogue.transaction() as connection:
            connection.execute(
                "INSERT INTO run (id, name, recipe, created, state) VALUES (?, ?, ?, ?, ?) "
                "ON CONFLICT (id) DO UPDATE SET state = ?",
                (run_id, recipe.name, recipe.model_dump_json(exclude_none=True), time.time(), state, state),
            )

    # ---- jobs ---------------------------------------------------------------------------------------------------------------

    def start_demo(self, material: str = "box", frequency: str = "1000hz") -> Job:
        """Simulated recordings, a trained ranker and its analysis are on their way."""
        request = {"material": material, "frequency": frequency}
        return self.queue.submit("demo", request, title=f"SIMULATED {material} {frequency}", who=self.who)

    def start_digits_demo(self) -> Job:
        """Real handwritten digits, some under wrong labels on purpose, a trained classifier and its analysis are on their way."""
        return self.queue.submit("demo", {"digits": True}, title="MNIST digits, some mislabelled", who=self.who)

    def follow(self, recipe: Recipe, *, quiet_seconds: float = 1800.0) -> Job:
        """A training still in progress is being followed: each new checkpoint makes a run, the job's `run_id` names the newest.

        Args:
            quiet_seconds: the training has ended when `training.json` lies beside its checkpoints, or no file of it changed for so long.
        """
        self.data_files(recipe)
        return self.queue.submit(
            "analysis", {"recipe": recipe.to_dict(), "quiet_seconds": quiet_seconds}, title=recipe.name, who=self.who
        )

    def start_inspection(self, folder: Path, prefix: str = "model_epoch_", model: ModelSection | None = None) -> Job:
        """The folder's checkpoints are being taken in; the job's result has one entry per file, accepted or refused."""
        list_checkpoints(folder, prefix)
        request = {"folder": str(folder), "prefix": prefix, "model": (model or RankerModel()).model_dump(mode="json")}
        return self.queue.submit("inspection", request, title=folder.name, who=self.who)

    def start_training(
        self,
        recipe: Recipe,
        *,
        settings: dict[str, Any],
        folder: Path | None = None,
        exclusions_file: Path | None = None,
        without: Sequence[str] = (),
        weighting: tuple[str, SuspectScore] | None = None,
        name: str = "",
    ) -> Job:
        """A training is on its way; its checkpoints go to the folder, by default a new one under `trainings/`.

        Args:
            recipe: its data, split, model, task and engine are the training's; its checkpoints are not read.
            settings: keyword arguments of the training (epochs, learning_rate, seed); what is left out is as in the demo's training.
            exclusions_file: sample ids or pair ids to leave out of the training side; it is read now.
            without: more such ids, beside those of the file: what the training of a run left out before.
            weighting: a run of these data and one of its scores, by which examples count in the loss (`scores.actions.weights_by`).
            name: what somebody calls it: of its analysis, and what the name of a new folder begins with.

        Raises:
            InputError: recordings, folder or list cannot be used; checked before anything starts.
        """
        self.data_files(recipe)
        loss = recipe.task.loss or USUAL_LOSSES[recipe.task.kind]
        stem = file_stem(name)[:60] or f"{recipe.data.stem}_{loss}"
        title = f"{'SIMULATED_' if recipe.simulated else ''}{stem}_{datetime.now():%Y%m%d_%H%M%S_%f}"
        place = self.root / "trainings" / title if folder is None else Path(os.path.abspath(folder))
        request: dict[str, Any] = {"recipe": recipe.to_dict(), "settings": settings, "folder": str(place)}
        request |= {"name": name} if name else {}
        lines = [] if exclusions_file is None else read_exclusions(exclusions_file)
        if lines and not isinstance(recipe.data, PluginData):  # whose samples only the worker can list
            known_exclusions(lines, reader_for(recipe.data).list()["id"].tolist())
        if exclusions_file is not None or without:
            file = None if exclusions_file is None else exclusions_file.name
            request["exclusions"] = {"file": file, "lines": list(dict.fromkeys([*without, *lines]))}
        if weighting is not None:
            request["weighting"] = {"run": weighting[0], "by": weighting[1]}
        prepare_folder(place)
        return self.queue.submit("training", request, title=title, who=self.who)

    def jobs(self, limit: int = 20) -> list[Job]:
        """Newest first; a dead worker is noticed and replaced by this look."""
        self.queue.ensure_worker()
        return self.queue.all(limit)

    def job(self, job_id: str) -> Job:
        self.queue.ensure_worker()
        return self.queue.get(job_id)

    def cancel(self, job_id: str) -> Job:
        return self.queue.cancel(job_id)

    def resume(self, job_id: str) -> Job:
        return self.queue.resume(job_id)

    def job_log(self, job_id: str) -> list[str]:
        return self.queue.log(job_id)

    # ---- maintenance --------------------------------------------------------------------------------------------------------

    def verify(self) -> Verification:
        """Every checksum was compared with the bytes on the disk, now; what is damaged is named."""
        return verify(self.root)

    def gc(self, *, dry_run: bool = False) -> list[Garbage]:
        """What no run refers to is removed, or only listed.

        Raises:
            WorkspaceError: a worker or a waiting job may need it; nothing is removed.
        """
        return collect_garbage(self.root, dry_run=dry_run)

    def rebuild_catalogue(self) -> Rebuilt:
        """The catalogue knows what the files prove. Where it is too damaged to open a workspace: `rebuild_catalogue(path)`."""
        return rebuild_catalogue(self.root)

    def readiness(self) -> dict[str, str]:
        """What keeps the workspace from taking and doing work, by what is wrong; empty if it is ready."""
        return readiness(self.root)

    def export_zarr(self, run: Run, folder: Path) -> Path:
        """The run's kernels and outputs are in the folder as a Zarr v3 group, which zarr-python and xarray open.

        Raises:
            InputError: the folder is there already.
            DamagedBlockError: a block is damaged; there is no folder then.
        """
        return export_zarr(run, self.store, folder)

    # ---- decisions ----------------------------------------------------------------------------------------------------------

    def decide(
        self, run: Run, samples: tuple[str, ...], verdict: Verdict, *, who: str = "", why: str = "", rule: str = ""
    ) -> Decision:
        """A person's verdict on one pair, or one sample, of the run is on the disk.

        Args:
            samples: the two ids of a pair, or one.
            rule: what the person was looking at: harm, or suspect.

        Raises:
            UnknownSampleError: the run has no such sample; nothing is written.
            ExclusionError, DamagedBlockError, DiskFullError: as `verdicts.record`.
        """
        strangers = set(samples) - set(run.samples["id"])
        if strangers:
            raise UnknownSampleError(f"Run '{run.name}' has no sample '{min(strangers)}'; choose one from its table of samples.")
        return record(self.root / "runs" / run.id, Decision(verdict, samples, who or self.who, why, rule))

    def verdicts(self, run: Run) -> pd.DataFrame:
        """The newest verdict on each pair or sample of the run that has one (`verdicts.standing`).

        Raises:
            DamagedBlockError: a line of the file is not as it was written.
        """
        return standing(self.verdict_history(run))

    def verdict_history(self, run: Run) -> list[Decision]:
        """Every verdict on the run's pairs and samples, oldest first, those taken back among them."""
        return history(self.root / "runs" / run.id)

    def export_exclusions(
        self,
        run: Run,
        chosen: pd.DataFrame,
        rule: dict[str, Any],
        *,
        who: str = "",
        why: str = "",
        facts: dict[str, Any] | None = None,
    ) -> tuple[Path, Path]:
        """The list is on disk as TXT and as JSON with its provenance, and the decision is in the catalogue.

        Args:
            chosen: as `View.exclusions` returns it; every id is checked against the data set first.
            rule: the settings that chose it, in plain values.
            why: required where this workspace has measured that such a list does harm.
            facts: what else the provenance says, in plain values.

        Raises:
            ExclusionError: an id does not belong to the run's data set, or a reason is missing; nothing is written.
        """
        who = who or self.who
        known = evidence(self, run, rule)
        require_reason(known, why)
        stamp = datetime.now().astimezone()
        stem = f"{run.recipe.data.stem}_{rule.get('pair_mode', 'list')}_{stamp:%Y%m%d_%H%M%S_%f}"
        provenance = {
            "run": run.id,
            "name": run.name,
            "digest": run.digest,
            "simulated": run.simulated,
            "rule": rule,
            "created": stamp.isoformat(timespec="seconds"),
            "who": who,
            "why": why,
            "recipe": run.recipe.to_dict(),
            "checkpoints": [{"epoch": row["epoch"], "digest": row["digest"]} for row in run.manifest.checkpoints],
            **({"evidence": [one.to_dict() for one in known]} if known else {}),
            **(facts or {}),
        }
        files = exclusion_files(self.root / "exports" / run.id, stem, chosen, provenance, sample_ids=run.samples["id"].tolist())
        with self.catalogue.transaction() as connection:
            connection.execute(
                "INSERT INTO exclusion (run_id, created, who, why, rule, file, entries) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (run.id, stamp.timestamp(), who, why, digest_of(rule), files[0].name, len(chosen)),
            )
        return files

    def exported_exclusions(self, run: Run) -> pd.DataFrame:
        """One row per exported list of a run, newest first: created, who, why, entries, text and provenance (paths of its files).

        Lists whose files were moved away are left out.
        """
        rows = self.catalogue.read("SELECT * FROM exclusion WHERE run_id = ? ORDER BY created DESC", (run.id,))
        table = pd.DataFrame([dict(row) for row in rows], columns=["created", "who", "why", "entries", "file"])
        text = [self.root / "exports" / run.id / name for name in table["file"]]
        beside = [provenance_of(path) for path in text]
        table = table.assign(text=text, provenance=pd.Series(beside, index=table.index, dtype=object)).drop(columns="file")
        return table[[one.is_file() and other.is_file() for one, other in zip(text, beside, strict=True)]].reset_index(drop=True)

    def read_back(self, run: Run, listed: Path) -> tuple[int, int]:
        """How many entries an exported list has on the disk, and how many of them are found in the run's data set.

        Raises:
            ExclusionError: the file cannot be read, or a line can be read in more than one way.
        """
        lines = read_exclusions(listed)
        return len(lines), len(match_exclusions(lines, run.samples["id"].tolist()).matched)

    def marked_metadata(self, listed: Path, metadata: Path) -> MetadataUpdate:
        """A copy of the sample metadata file lies beside the exported list, with the list's entries marked; the file is as it was.

        Args:
            listed: the list's text file, as `exported_exclusions` names it.

        Raises:
            DataError: as `score_files.update_sample_metadata`.
        """
        told = read_json(provenance_of(listed))
        copied = listed.parent / "metadata" / f"{listed.stem}_{metadata.name}"  # not among the lists, which are read back by folder
        copied.parent.mkdir(exist_ok=True)
        shutil.copyfile(metadata, copied)
        provenance = {name: told[name] for name in ("run", "name", "digest", "simulated", "rule")}
        return update_sample_metadata(copied, pd.DataFrame(told["entries"] or {"id": []}), provenance)

    # ---- folders that may be read -------------------------------------------------------------------------------------------

    def resolve(self, folder_id: str, *, file: bool = False) -> Path:
        """The directory, or the file, that `<root id>/<relative path>` names.

        Raises:
            OutsideRootsError: it leads out of the allowed folders, also by a link.
            NotFoundError: it is not a directory, or not a file.
        """
        root_id, _, relative = folder_id.partition("/")
        root = self.roots.get(root_id)
        if root is None or "\0" in relative:
            raise OutsideRootsError(
                f"'{folder_id[:80]}' is outside the folders that this server may read ({', '.join(self.roots)}); choose one of "
                f"these, or start the server with TRACIN_ROOTS naming yours."
            )
        path = Path(os.path.realpath(root / relative))
        if os.path.commonpath([path, root]) != str(root):
            raise OutsideRootsError(
                f"'{folder_id[:80]}' leads outside '{root_id}'; choose a folder inside it, or start the server with TRACIN_ROOTS "
                f"naming yours."
            )
        if not (os.path.isfile(path) if file else os.path.isdir(path)):  # also where the name is too long for one
            what = "file" if file else "folder"
            raise NotFoundError(f"'{folder_id[:80]}' is not a {what} on this server; choose one from the list.")
        return path

    def folder_id(self, path: Path) -> str:
        """The inverse of `resolve`.

        Raises:
            OutsideRootsError: the path lies in none of the allowed folders.
        """
        real = Path(os.path.realpath(path))
        for root_id, root in self.roots.items():
            if os.path.commonpath([real, root]) == str(root):
                relative = real.relative_to(root).as_posix()
                return root_id if relative == "." else f"{root_id}/{relative}"
        raise OutsideRootsError(
            f"'{path}' is outside the folders that this server may read ({', '.join(self.roots)}); choose one of these, or start "
            f"the server with TRACIN_ROOTS naming yours."
        )

    def checkpoint_folders(self) -> list[str]:
        """Ids of the folders under the allowed roots that hold checkpoint files."""
        return self._search(lambda folder, names: any(name.endswith((".pt", ".pth", ".safetensors")) for name in names))

    def recording_folders(self) -> list[str]:
        """Ids of the folders under the allowed roots that hold recordings in the lab's layout."""
        return self._search(
            lambda folder, names: any(child.is_dir() and child.name.startswith("deg") for child in folder.iterdir())
        )

    def image_folders(self) -> list[str]:
        """Ids of the folders under the allowed roots whose own folders hold pictures: one folder per class."""

        def of_classes(folder: Path, names: list[str]) -> bool:
            return any(
                inner.suffix.lower() in PICTURES
                for child in folder.iterdir()
                if child.is_dir()
                for inner in islice(child.iterdir(), 50)
            )

        return self._search(of_classes)

    def files_named(self, suffix: str) -> list[str]:
        """Ids of the files under the allowed roots whose names end so, for instance `.npz`."""
        here = self._search(lambda folder, names: any(name.lower().endswith(suffix) for name in names))
        return [
            f"{folder}/{path.name}"
            for folder in here
            for path in sorted(self.resolve(folder).iterdir())
            if path.suffix.lower() == suffix and path.is_file()
        ]

    def plugins(self) -> pd.DataFrame:
        """The files in the workspace's `plugins/`, none of which was run: name, model, data, digest, problem."""
        return list_plugins(self.root / "plugins")

    def _search(self, matches: Callable[[Path, list[str]], bool]) -> list[str]:
        own = {self.root / name for name in OWN_FOLDERS}
        found: list[str] = []
        for root in self.roots.values():
            for path, folders, files in os.walk(root):
                here = Path(path)
                depth = len(here.relative_to(root).parts)
                inner = sorted(name for name in folders if not name.startswith(".") and here / name not in own)
                folders[:] = inner if depth < SEARCH_DEPTH else []
                if matches(here, files):
                    found.append(self.folder_id(here))
                if len(found) >= SEARCH_LIMIT:
                    return found
        return found


def prepare_folder(folder: Path) -> None:
    """The folder is there for a training's files, and holds no other's, among which its checkpoints would be counted.

    Raises:
        InputError: it cannot be made or written to, or it is in use.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        there = sorted(path.name for path in folder.iterdir() if path.suffix in SUFFIXES or path.name in TRAINING_FILES)
    except OSError as failure:
        raise InputError(
            f"The folder '{folder}' cannot be used ({failure.strerror}); choose one that you may write to."
        ) from failure
    if not os.access(folder, os.W_OK):
        raise InputError(f"The folder '{folder}' may not be written to; choose one that you may write to.")
    if there:
        raise InputError(f"The folder '{folder}' is in use already (it holds '{there[0]}'); choose a new one.")


def configured_roots() -> list[Path]:
    """The directories named in TRACIN_ROOTS, which whoever starts the server sets."""
    return [Path(name) for name in os.environ.get("TRACIN_ROOTS", "").split(os.pathsep) if name.strip()]


def named_roots(paths: list[Path]) -> dict[str, Path]:
    """A short, unique id for each directory; the first is the workspace."""
    roots: dict[str, Path] = {}
    for number, path in enumerate(paths):
        real = Path(os.path.realpath(path.expanduser()))
        name = "workspace" if number == 0 else (real.name or "root")
        if not real.is_dir():
            raise WorkspaceError(f"TRACIN_ROOTS names '{path}', which is not a directory; correct it and start again.")
        if name in roots:
            name = f"{name}-{number}"
        roots[name] = real
    return roots
