"""What keeps a workspace sound: every checksum read again, the catalogue restored from files, and what nobody needs removed.

Nothing here needs the catalogue to be whole, and nothing repairs a damaged file: it is named, and computing the run again redoes it alone.
"""

import hashlib
import json
import os
import re
import shutil
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import filelock
import safetensors
import safetensors.numpy

from tracin_core.data.files import flush_directory, read_json, write_text
from tracin_core.data.seals import json_damage, png_damage, text_damage, wav_damage
from tracin_core.errors import DamagedBlockError, PluginError, RecipeError, WorkspaceError
from tracin_core.recipe import Recipe
from tracin_core.records import verdicts
from tracin_core.records.catalogue import Catalogue, catalogue_damage
from tracin_core.records.checkpoint_files import CURVATURES
from tracin_core.records.datasets import CHUNKS_LOST, SPLIT_LOST, dataset_key, digest_of_inputs
from tracin_core.records.interchange import PROVENANCE
from tracin_core.records.manifest import Manifest, read_samples
from tracin_core.records.store import BlockKey, block_damage, digest_of, stored_checksum

CATALOGUE: Final = "tracin.sqlite3"
FINISHED: Final = ("done", "superseded")  # the latter by a later run of the training that a job follows
SEAL: Final = "SHA256SUMS"  # in the form that `sha256sum --check` reads
SEALED: Final = ("run.json", "samples.csv")
SCORES: Final = "scores.safetensors"  # of a run that was imported; sealed with the others
STRAY_SECONDS: Final = 3600.0  # a file that is still being written is younger
BROKEN: Final = (OSError, ValueError, KeyError, TypeError, AttributeError, RecipeError)  # what reading a damaged file may raise


@dataclass(frozen=True)
class Damage:
    """A file of the workspace, and what is wrong with it, as the rest of a sentence."""

    file: str
    reason: str

    def __str__(self) -> str:
        return f"{self.file} {self.reason}"


def require_workspace(root: Path) -> None:
    """The directory is a workspace; none is made.

    Raises:
        WorkspaceError: it is not there, or it is something else.
    """
    if not (root / "runs").is_dir() or not (root / "kernels").is_dir():
        raise WorkspaceError(f"'{root}' is not a workspace (it has no folders runs and kernels); give the directory of one.")


@contextmanager
def without_worker(root: Path) -> Iterator[None]:
    """No worker serves the workspace meanwhile: this holds the lock that a worker holds.

    Raises:
        WorkspaceError: one is at work.
    """
    try:
        with filelock.FileLock(root / ".worker.lock", timeout=0):
            yield
    except filelock.Timeout:
        raise WorkspaceError(
            f"A worker serves the workspace '{root.name}'; cancel its jobs or wait for their end (it leaves a minute after the last), then "
            f"try again."
        ) from None


# ---- sealed runs ------------------------------------------------------------------------------------------------------------


def seal_run(folder: Path) -> None:
    """The run's `SHA256SUMS` says what its files are, so that later damage shows."""
    names = [*SEALED, *([SCORES] if (folder / SCORES).exists() else [])]
    write_text(folder / SEAL, "".join(f"{sha256_of(folder / name)}  {name}\n" for name in names))


def seal_damage(folder: Path) -> list[Damage]:
    """The files of a run that are not as they were sealed."""
    place = f"runs/{folder.name}"
    try:
        lines = (folder / SEAL).read_text(encoding="ascii").splitlines()
        sums = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    except (OSError, ValueError) as failure:
        return [Damage(f"{place}/{SEAL}", f"cannot be read ({failure})")]
    if not set(SEALED) <= set(sums) <= {*SEALED, SCORES}:
        return [Damage(f"{place}/{SEAL}", f"names {', '.join(sums) or 'nothing'} instead of {' and '.join(SEALED)}")]
    found = {name: sha256_or_reason(folder / name) for name in sums}
    return [
        Damage(f"{place}/{name}", f"has SHA-256 {found[name][:12]}, but {SEAL} says {sums[name][:12]}")
        for name in sums
        if found[name] != sums[name]
    ]


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_or_reason(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError as failure:
        return f"({failure.strerror})"


# ---- verify -----------------------------------------------------------------------------------------------------------------


@dataclass
class Verification:
    """What was read again, and what was wrong. Files that have no checksum, because an older version wrote them, are counted apart."""

    files: Counter[str] = field(default_factory=Counter)
    bytes: int = 0
    damages: list[Damage] = field(default_factory=list)
    unsealed: list[str] = field(default_factory=list)  # runs that have no checksum of their own yet


def verify(root: Path) -> Verification:
    """Every checksum of every block, kept input, split, list of chunks, preview, canonical checkpoint and run was compared with the
    bytes on the disk, now.

    Also named: a block that a run needs and that is not there, one whose checksum is not the catalogue's, and a damaged catalogue.
    Nothing is changed.

    Raises:
        WorkspaceError: this is no workspace.
    """
    require_workspace(root)
    found = Verification()
    for kind, (pattern, damage_of) in FILES.items():
        for path in sorted(root.glob(pattern)):
            try:
                reason = damage_of(path)
                found.bytes += path.stat().st_size
            except OSError as failure:
                reason = f"cannot be read ({failure.strerror})"
            found.files[kind if reason is not None else f"unsealed {kind}"] += 1
            if reason:
                found.damages.append(Damage(path.relative_to(root).as_posix(), reason))
    _verify_runs(root, found)
    _verify_catalogue(root, found)
    return found


def _verify_runs(root: Path, found: Verification) -> None:
    unfinished = unfinished_runs(root)
    for path in sorted(root.glob("runs/*/run.json")):
        folder = path.parent
        found.files["runs"] += 1
        if (folder / SEAL).exists() and folder.name not in unfinished:  # a run that is computed again is sealed at its end
            found.damages += seal_damage(folder)
        elif folder.name not in unfinished:
            found.unsealed.append(folder.name)
        try:
            manifest = read_manifest(folder)
        except BROKEN as failure:
            found.damages.append(Damage(f"runs/{folder.name}/run.json", f"cannot be read as a run ({told(failure)})"))
            continue
        found.damages += _absent_blocks(root, manifest)


def _absent_blocks(root: Path, manifest: Manifest) -> Iterator[Damage]:
    for key in run_blocks(manifest):
        path = root / "kernels" / key.name
        if not path.is_file():
            yield Damage(f"kernels/{key.name}", f"is not there, and run {manifest.id} needs it")
        elif path.stat().st_size != key.bytes:
            yield Damage(f"kernels/{key.name}", f"has {path.stat().st_size} bytes instead of {key.bytes}")


def _verify_catalogue(root: Path, found: Verification) -> None:
    reason = catalogue_damage(root / CATALOGUE)
    if reason:
        found.damages.append(Damage(CATALOGUE, f"{reason}; rebuild-catalogue restores it"))
        return
    found.files["catalogue"] += 1
    damaged = {damage.file for damage in found.damages}
    catalogue = Catalogue(root / CATALOGUE, migrate=False)
    for row in catalogue.read(f"SELECT id FROM run WHERE state IN {FINISHED} ORDER BY id"):
        if not (root / "runs" / row["id"] / "run.json").exists():
            found.damages.append(Damage(f"runs/{row['id']}/run.json", "is not there, and the catalogue has this run as finished"))
    for row in catalogue.read("SELECT name, crc FROM block ORDER BY name"):
        name, path = f"kernels/{row['name']}", root / "kernels" / row["name"]
        if name in damaged or not path.is_file():
            continue
        stored = stored_checksum(path)
        if stored != row["crc"]:
            found.damages.append(Damage(name, f"ends with checksum {stored:08x}, but the catalogue has {row['crc']:08x}"))


def group_damage(path: Path) -> str:
    """A group is named by the digest of what its `group.json` says."""
    try:
        found = digest_of(read_json(path))
    except ValueError as failure:
        return f"cannot be read ({told(failure)})"
    return "" if found == path.parent.name else f"says something whose digest is {found}"


def inputs_damage(path: Path) -> str:
    """Kept inputs are named by the digest of their samples."""
    try:
        found = digest_of_inputs(safetensors.numpy.load(path.read_bytes()))
    except (safetensors.SafetensorError, KeyError, ValueError, TypeError) as failure:
        return f"cannot be read ({told(failure)})"
    return "" if found == path.stem else f"holds samples whose digest is {found}"


def checkpoint_damage(path: Path) -> str:
    """Canonical weights are named by their SHA-256."""
    found = sha256_of(path)
    return "" if found == path.stem else f"has SHA-256 {found[:12]}"


def split_damage(path: Path) -> str | None:
    """A split holds its own digest."""
    reason = json_damage(path)
    return f"{reason}; {SPLIT_LOST}" if reason else reason


def chunks_damage(path: Path) -> str | None:
    """A list of chunks holds its own digest."""
    reason = json_damage(path)
    return f"{reason}; {CHUNKS_LOST}" if reason else reason


def preview_damage(path: Path) -> str | None:
    """Previews are only looked at and listened to: no number rests on them."""
    raw = path.read_bytes()
    check = {".png": png_damage, ".wav": wav_damage, ".txt": text_damage}.get(path.suffix)
    reason = check(raw) if check is not None else "is no picture, sound or text"
    return (
        f"{reason} (a preview, on which no number rests; once removed, the next new run of its data makes it again)"
        if reason
        else reason
    )


def verdicts_damage(path: Path) -> str:
    """Each line holds its own checksum."""
    try:
        verdicts.history(path.parent)
    except DamagedBlockError as failure:
        return f"is damaged ({told(failure)})"
    return ""


FILES: Final[dict[str, tuple[str, Callable[[Path], str | None]]]] = {
    "blocks": ("kernels/*/*.f32", block_damage),
    "groups": ("kernels/*/group.json", group_damage),
    "splits": ("datasets/*/split-*.json", split_damage),
    "lists of chunks": ("datasets/*/chunks-*.json", chunks_damage),
    "inputs": ("datasets/*/inputs/*.safetensors", inputs_damage),
    "previews": ("datasets/*/previews/[!.]*", preview_damage),
    "checkpoints": ("checkpoints/*.safetensors", checkpoint_damage),
    "verdicts": (f"runs/*/{verdicts.FILE}", verdicts_damage),
}


def told(failure: Exception) -> str:
    """What an error says, on one line."""
    return " ".join(str(failure).split()) or type(failure).__name__


# ---- runs on the disk -------------------------------------------------------------------------------------------------------


def read_manifest(folder: Path) -> Manifest:
    """The run in this folder, which has the folder's name and whose recipe is one.

    Raises:
        OSError, ValueError, KeyError, TypeError, AttributeError, RecipeError: its file is damaged.
    """
    manifest = Manifest.read(folder)
    if manifest.id != folder.name:
        raise ValueError(f"it is of run {manifest.id!r}")
    Recipe.from_dict(manifest.recipe)
    for _ in run_blocks(manifest):
        break
    return manifest


def run_blocks(manifest: Manifest) -> Iterator[BlockKey]:
    """The keys of all blocks of a run."""
    for group in manifest.groups:
        yield from manifest.kernel_keys(group)


def unfinished_runs(root: Path) -> dict[str, Recipe]:
    """Runs that were asked for and are not finished, as far as a whole catalogue knows them."""
    path = root / CATALOGUE
    if catalogue_damage(path):
        return {}
    rows = Catalogue(path, migrate=False).read(f"SELECT id, recipe FROM run WHERE state NOT IN {FINISHED}")
    return {row["id"]: Recipe.model_validate_json(row["recipe"]) for row in rows}


# ---- rebuild-catalogue ------------------------------------------------------------------------------------------------------


@dataclass
class Rebuilt:
    """What the catalogue holds now, from which files; `aside` is where the damaged one is."""

    runs: int = 0
    decisions: int = 0
    blocks: int = 0
    aside: Path | None = None
    dropped: list[str] = field(default_factory=list)
    damages: list[Damage] = field(default_factory=list)


def rebuild_catalogue(root: Path) -> Rebuilt:
    """The catalogue knows every run, decision and block that the files prove.

    A whole catalogue keeps what it alone knows (jobs, runs that are not finished) and is completed in one transaction. A damaged one is
    moved aside, never deleted, and a new one takes its place: what only it knew is lost with it. A run's time is then that of its
    `run.json`, a block's that of its file, and a block's seconds, which no file says, are 0.

    Raises:
        WorkspaceError: this is no workspace, a worker serves it, or a newer version wrote it.
    """
    require_workspace(root)
    path = root / CATALOGUE
    with without_worker(root):
        if not catalogue_damage(path):
            return fill_catalogue(Catalogue(path), root)
        handle, beside = tempfile.mkstemp(prefix=f".{CATALOGUE}.", suffix=".partial", dir=root)
        os.close(handle)
        try:
            rebuilt = fill_catalogue(Catalogue(Path(beside)), root)
            rebuilt.aside = set_aside(path)
            os.replace(beside, path)
        finally:
            Path(beside).unlink(missing_ok=True)
        flush_directory(root)
    return rebuilt


def set_aside(path: Path) -> Path | None:
    """The file has another name too, before a new one takes its own; its journal, which SQLite would play back into that, is moved."""
    stamp = f"{datetime.now():%Y%m%d_%H%M%S_%f}"
    aside = path.with_name(f"{path.name}.damaged-{stamp}")
    for ending in ("-journal", "-wal", "-shm"):
        with suppress(FileNotFoundError):
            os.replace(path.with_name(path.name + ending), aside.with_name(aside.name + ending))
    try:
        os.link(path, aside)
    except FileNotFoundError:
        return None
    except OSError:  # a file system without hard links
        shutil.copy2(path, aside)
    return aside


def fill_catalogue(catalogue: Catalogue, root: Path) -> Rebuilt:
    """Everything that the files prove is in the catalogue, in one transaction."""
    rebuilt = Rebuilt()
    manifests = list(_whole_runs(root, rebuilt))
    decisions = list(_decisions(root, rebuilt))
    blocks = list(_whole_blocks(root, manifests, rebuilt))
    with catalogue.transaction() as connection:
        for manifest in manifests:
            enter_run(connection, manifest)
        for row in connection.execute(f"SELECT id FROM run WHERE state IN {FINISHED}").fetchall():
            if not (root / "runs" / row["id"] / "run.json").exists():
                connection.execute("DELETE FROM run WHERE id = ?", (row["id"],))
                rebuilt.dropped.append(row["id"])
        for decision in decisions:
            # Each alone names the decision, to the microsecond: a row in which one of them is damaged is still this one.
            connection.execute("DELETE FROM exclusion WHERE file = :file OR created = :created", decision)
            connection.execute(
                "INSERT INTO exclusion (run_id, created, who, why, rule, file, entries) "
                "VALUES (:run_id, :created, :who, :why, :rule, :file, :entries)",
                decision,
            )
        seconds = {row["name"]: row["seconds"] for row in connection.execute("SELECT name, seconds FROM block")}
        connection.execute("DELETE FROM block")
        connection.executemany(
            "INSERT INTO block (name, shape, crc, seconds, created) VALUES (?, ?, ?, ?, ?)",
            [(name, shape, crc, seconds.get(name, 0.0), created) for name, shape, crc, created in blocks],
        )
    rebuilt.runs, rebuilt.decisions, rebuilt.blocks = len(manifests), len(decisions), len(blocks)
    return rebuilt


def enter_run(connection: sqlite3.Connection, manifest: Manifest) -> None:
    """The run is in the catalogue: as done if it was not there, for a run that has its `run.json` is finished."""
    recipe = Recipe.from_dict(manifest.recipe)
    connection.execute(
        "INSERT INTO run (id, name, recipe, created, state) VALUES (?, ?, ?, ?, 'done') "
        "ON CONFLICT (id) DO UPDATE SET name = excluded.name, recipe = excluded.recipe",
        (manifest.id, recipe.name, recipe.model_dump_json(exclude_none=True), manifest.created),
    )


def _whole_runs(root: Path, rebuilt: Rebuilt) -> Iterator[Manifest]:
    for path in sorted(root.glob("runs/*/run.json")):
        damages = seal_damage(path.parent) if (path.parent / SEAL).exists() else []
        try:
            manifest = read_manifest(path.parent)
        except BROKEN as failure:
            damages = damages or [Damage(path.relative_to(root).as_posix(), f"cannot be read as a run ({told(failure)})")]
        if damages:
            rebuilt.damages += damages
        else:
            yield manifest


def _decisions(root: Path, rebuilt: Rebuilt) -> Iterator[dict[str, Any]]:
    for path in sorted(root.glob("exports/*/*.json")):
        stem = path.name.removesuffix(PROVENANCE).removesuffix(".json")  # earlier versions wrote the latter
        try:
            said = read_json(path)
            yield {
                "run_id": str(said["run"]),
                "created": moment_of(stem, str(said["created"])),
                "who": str(said["who"]),
                "why": str(said["why"]),
                "rule": digest_of(said["rule"]),
                "file": f"{stem}.txt",
                "entries": len(said["entries"]),
            }
        except BROKEN as failure:
            rebuilt.damages.append(Damage(path.relative_to(root).as_posix(), f"cannot be read as a decision ({told(failure)})"))


def moment_of(stem: str, created: str) -> float:
    """When a list was exported: its provenance says it to the second, its name to the microsecond."""
    moment = datetime.fromisoformat(created)
    exact = re.search(r"_(\d{8}_\d{6}_\d{6})$", stem)
    if exact is not None:
        moment = datetime.strptime(exact[1], "%Y%m%d_%H%M%S_%f").replace(tzinfo=moment.tzinfo)
    return moment.timestamp()


def _whole_blocks(root: Path, manifests: list[Manifest], rebuilt: Rebuilt) -> Iterator[tuple[str, str, int, float]]:
    """Name, shape, checksum and time of every block whose checksum is right and whose shape the files tell."""
    shapes = {key.name: key.shape for manifest in manifests for key in run_blocks(manifest)}
    lengths = {path.stem: _samples_in(path) for path in root.glob("datasets/*/inputs/*.safetensors")}
    for path in sorted(root.glob("kernels/*/*.f32")):
        name = path.relative_to(root / "kernels").as_posix()
        try:
            reason = block_damage(path)
            shape = shapes.get(name) or _shape_told(path, lengths)
        except BROKEN as failure:
            reason = f"cannot be read ({told(failure)})"
        if reason:
            rebuilt.damages.append(Damage(f"kernels/{name}", reason))
        else:
            yield name, json.dumps(list(shape)), stored_checksum(path), path.stat().st_mtime


def _samples_in(path: Path) -> int:
    """How many samples a file of inputs holds, from its header; 0 if it cannot be read."""
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return int(file.get_slice("inputs").get_shape()[0])
    except (OSError, safetensors.SafetensorError):
        return 0


def _shape_told(path: Path, lengths: dict[str, int]) -> tuple[int, ...]:
    """The shape of a block that no finished run refers to, from its group and the inputs that it is of.

    Raises:
        ValueError, KeyError, OSError: they do not tell, or not this size.
    """
    left, _, right = path.name.removesuffix(".f32").removesuffix(".outputs").partition("-")
    group = read_json(path.parent / "group.json")
    outputs = group.get("outputs", 1)
    each = outputs if group["cotangent"] == "outputs" else 1
    of_outputs = (lengths[left], outputs) if outputs > 1 else (lengths[left],)
    shape = (len(group["layers"]), each * lengths[left], each * lengths[right]) if right else of_outputs
    if BlockKey(path.parent.name, left, right or None, shape).bytes != path.stat().st_size:
        raise ValueError(f"{path.stat().st_size} bytes are not the shape {shape}")
    return shape


# ---- gc ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Garbage:
    """A file that no run refers to."""

    kind: str
    path: Path
    bytes: int


def collect_garbage(root: Path, *, dry_run: bool = False) -> list[Garbage]:
    """Blocks, curvatures, inputs and previews that no run refers to, and unfinished files older than an hour, are removed, or only listed.

    A run that is asked for but not finished refers to every block of its model and its engine settings, and to everything of its data set:
    resumed, it computes nothing twice. Weights, splits and exports are never removed.

    Raises:
        WorkspaceError: a worker serves the workspace, a job waits, or a run or the catalogue cannot be read: nothing is removed.
    """
    require_workspace(root)
    with without_worker(root):
        catalogue = _usable_catalogue(root)
        found = sorted(_garbage(root), key=lambda garbage: garbage.path)
        if dry_run:
            return found
        for garbage in found:
            garbage.path.unlink()
        for folder in sorted(root.glob("kernels/*")):
            _remove_empty_group(folder)
        with catalogue.transaction() as connection:
            names = [(g.path.relative_to(root / "kernels").as_posix(),) for g in found if g.kind == "blocks"]
            connection.executemany("DELETE FROM block WHERE name = ?", names)
    return found


def _usable_catalogue(root: Path) -> Catalogue:
    """The catalogue, which is whole and in which no job waits."""
    reason = catalogue_damage(root / CATALOGUE)
    if reason:
        raise WorkspaceError(
            f"The catalogue '{CATALOGUE}' {reason}, so it is unknown which runs are unfinished; restore it with rebuild-catalogue first."
        )
    catalogue = Catalogue(root / CATALOGUE)
    waiting = catalogue.read("SELECT id, title, state FROM job WHERE state IN ('queued', 'running', 'paused') LIMIT 1")
    if waiting:
        raise WorkspaceError(
            f"Job {waiting[0]['id']} ('{waiting[0]['title']}') is {waiting[0]['state']} and may need what no run refers to yet; "
            f"let it end, or cancel it, then try again."
        )
    return catalogue


def _garbage(root: Path) -> Iterator[Garbage]:
    blocks, parts = _referred(root)
    unfinished = list(unfinished_runs(root).values())
    try:
        datasets = {dataset_key(recipe, root / "plugins") for recipe in unfinished}
    except PluginError:  # without its file, nobody can say which data are an unfinished run's
        datasets = {path.name for path in root.glob("datasets/*")}
    for path in root.glob("kernels/*/*.f32"):
        if f"{path.parent.name}/{path.name}" not in blocks and not _may_be_of(path.parent, unfinished):
            yield Garbage("blocks", path, path.stat().st_size)
    for kind in ("inputs", "previews"):
        for path in root.glob(f"datasets/*/{kind}/[!.]*"):
            key = path.parents[1].name
            if (key, kind, path.stem) not in parts and key not in datasets:
                yield Garbage(kind, path, path.stat().st_size)
    if not any(recipe.engine.precondition == "ekfac" for recipe in unfinished):
        yield from _unused_curvatures(root)
    yield from _half_written(root)


def _half_written(root: Path) -> Iterator[Garbage]:
    now = time.time()
    for folder, _, names in os.walk(root):
        for path in (Path(folder, name) for name in names if name.startswith(".") and name.endswith(".partial")):
            with suppress(FileNotFoundError):  # whoever was writing it has just renamed it
                state = path.stat()
                if now - state.st_mtime > STRAY_SECONDS:
                    yield Garbage("partial", path, state.st_size)


def _unused_curvatures(root: Path) -> Iterator[Garbage]:
    """Curvatures that no finished run divided by, and the notes of what they are of; another damping of a run shares its own."""
    used = {
        checkpoint.get("curvature")
        for path in root.glob("runs/*/run.json")
        for checkpoint in read_manifest(path.parent).checkpoints
    }
    for note in root.glob(f"checkpoints/{CURVATURES}/*.json"):
        digest = read_json(note)["curvature"]
        if digest not in used:
            kept = root / "checkpoints" / f"{digest}.safetensors"
            yield from (Garbage("curvatures", path, path.stat().st_size) for path in (note, kept) if path.is_file())


def _referred(root: Path) -> tuple[set[str], set[tuple[str, str, str]]]:
    """Names of blocks, and (data set, kind, digest) of inputs and previews, that finished runs refer to."""
    blocks: set[str] = set()
    parts: set[tuple[str, str, str]] = set()
    for path in sorted(root.glob("runs/*/run.json")):
        try:
            manifest = read_manifest(path.parent)
            digests = read_samples(path.parent)["digest"]
        except BROKEN as failure:
            raise WorkspaceError(
                f"Run '{path.parent.name}' cannot be read ({told(failure)}), so it is unknown what it refers to; see what verify says. "
                f"Nothing was removed."
            ) from failure
        blocks |= {key.name for key in run_blocks(manifest)}
        parts |= {(manifest.dataset, "previews", str(digest)) for digest in digests}
        parts |= {(manifest.dataset, "inputs", chunk.digest) for chunks in manifest.chunks.values() for chunk in chunks}
    return blocks, parts


def _may_be_of(group: Path, recipes: list[Recipe]) -> bool:
    """The group was computed as one of these recipes asks, as far as can be told without its weights."""
    if not recipes:
        return False
    try:
        said = read_json(group / "group.json")
    except (OSError, ValueError):
        return True
    engine = {"batch_size", "threads", "device"}
    asked = [
        {"model": recipe.model.model_dump(mode="json"), **recipe.engine.model_dump(mode="json", include=engine)}
        for recipe in recipes
    ]
    return any(all(said.get(name) == value for name, value in settings.items()) for settings in asked)


def _remove_empty_group(folder: Path) -> None:
    if folder.is_dir() and [path.name for path in folder.iterdir()] in ([], ["group.json"]):
        (folder / "group.json").unlink(missing_ok=True)
        folder.rmdir()
