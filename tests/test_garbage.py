"""Nothing that is needed is removed, and nothing that is there is computed again."""

import itertools
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import lab
import pandas as pd
import pytest
from made_runs import files_of, known, made_recipe, made_run

from tracin_core.data.files import write_json
from tracin_core.errors import WorkspaceError
from tracin_core.recipe import Recipe
from tracin_core.records import maintenance, processes
from tracin_core.records.maintenance import collect_garbage, rebuild_catalogue, verify
from tracin_core.records.runs import Run
from tracin_core.records.store import digest_of
from tracin_core.records.workspace import open_workspace

# ---- gc ---------------------------------------------------------------------------------------------------------------------


def test_what_finished_runs_refer_to_stays(root: Path) -> None:
    before = files_of(root)
    assert collect_garbage(root) == []
    assert files_of(root) == before


def test_what_only_a_dropped_run_needed_goes_and_its_order_is_listed_first(root: Path) -> None:
    place = open_workspace(root)
    kept, dropped = (place.run(run_id) for run_id in sorted(place.runs()["id"]))
    samples = len(dropped.samples)
    shutil.rmtree(root / "runs" / dropped.id)
    rebuild_catalogue(root)
    before = files_of(root)
    listed = collect_garbage(root, dry_run=True)
    assert files_of(root) == before
    assert collect_garbage(root) == listed
    gone = before.keys() - files_of(root).keys()
    listed_names = {garbage.path.relative_to(root).as_posix() for garbage in listed}
    assert gone - listed_names == {f"kernels/{group}/group.json" for group in dropped.manifest.groups}
    assert listed_names <= gone
    counts = pd.Series([garbage.kind for garbage in listed]).value_counts()
    assert counts.to_dict() == {"blocks": 28, "inputs": 4, "previews": 3 * samples}
    assert verify(root).damages == []
    assert {name for name, *_ in known(root)["block"]} == {key.name for key in maintenance.run_blocks(kept.manifest)}
    assert open_workspace(root).run(kept.id).kernels.test_train.shape == (2, 2, 6, 8)


def test_two_runs_over_the_same_blocks_share_them(root: Path) -> None:
    place = open_workspace(root)
    made_run(place, "first", seed=0, margin=2.0)
    shutil.rmtree(root / "runs" / digest_of(["first", 0, 1.0])[:12])
    assert collect_garbage(root) == []


def test_what_an_unfinished_run_may_have_computed_stays(root: Path) -> None:
    place = open_workspace(root)
    for path in root.glob("runs/*"):
        shutil.rmtree(path)
    rebuild_catalogue(root)
    place.register_run("unfinished00", made_recipe())
    assert collect_garbage(root) == []
    other = Recipe.from_dict({**made_recipe().to_dict(), "engine": {"threads": 1, "batch_size": 8}})
    with place.catalogue.transaction() as connection:
        connection.execute("UPDATE run SET recipe = ?", (other.model_dump_json(exclude_none=True),))
    assert {garbage.kind for garbage in collect_garbage(root)} == {"blocks"}


def test_half_written_files_go_after_an_hour(root: Path) -> None:
    group = next(root.glob("kernels/*"))
    old, young = group / ".block.f32.abc.partial", group / ".block.f32.def.partial"
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 4000,) * 2)
    assert [garbage.path for garbage in collect_garbage(root)] == [old]
    assert young.exists()


def test_what_the_machinery_keeps_stays(root: Path) -> None:
    """What was found in checkpoint files, the room set aside for a full disk, and a run that a later one of its training replaced."""
    place = open_workspace(root)
    run = place.run(place.runs()["id"].iloc[0])
    place.register_run(run.id, run.recipe, state="superseded")
    write_json(root / "checkpoints" / "known" / "0123.json", {"digest": "abc"})
    place.queue.keep_spare()
    place.queue.claim(processes.this_process())
    before = files_of(root)
    assert {"checkpoints/known/0123.json", "jobs/.spare", f"runs/{run.id}/run.json"} <= before.keys()
    assert (root / "jobs" / ".worker").exists()
    assert collect_garbage(root) == []
    assert files_of(root) == before
    assert open_workspace(root).run(run.id).kernels.test_train.shape == (2, 2, 6, 8)  # a link to it goes on working


def test_gc_removes_nothing_where_it_cannot_know(root: Path) -> None:
    for path in root.glob("runs/*/run.json"):
        shutil.rmtree(path.parent)
        break
    run = next(root.glob("runs/*/run.json"))
    whole = run.read_bytes()
    run.write_bytes(whole[:-9])
    before = files_of(root)
    with pytest.raises(WorkspaceError, match="Nothing was removed"):
        collect_garbage(root)
    run.write_bytes(whole)
    (root / "tracin.sqlite3").write_bytes(b"no database" * 1000)
    with pytest.raises(WorkspaceError, match="rebuild-catalogue first"):
        collect_garbage(root)
    run.write_bytes(whole[:-9])
    assert files_of(root) == before


@pytest.mark.parametrize("state", ["queued", "running", "paused"])
def test_gc_waits_for_jobs(root: Path, state: str) -> None:
    with open_workspace(root).catalogue.transaction() as connection:
        connection.execute(
            "INSERT INTO job (id, kind, state, title, request, request_digest, created, position) "
            "VALUES ('j', 'demo', ?, 't', '{}', 'd', 1, 1)",
            (state,),
        )
    with pytest.raises(WorkspaceError, match=f"'t'.* is {state}"):
        collect_garbage(root)


# ---- nothing is computed twice ----------------------------------------------------------------------------------------------


def test_only_missing_blocks_are_computed(shelf: lab.Shelf, tmp_path: Path) -> None:
    """New recordings, a wider test set, another checkpoint, a second recipe: new blocks are those of the new names, and no other."""
    recordings = shutil.copytree(shelf.recordings(), tmp_path / "recordings")
    trained = shelf.checkpoints()
    folder = tmp_path / "growing"
    folder.mkdir()
    for epoch in (0, 1):
        shutil.copy2(trained / f"model_epoch_{epoch}.pt", folder)
    place = open_workspace(tmp_path / "workspace")
    recipe = lab.recipe_for(recordings, folder)

    def computed(recipe: Recipe) -> tuple[Run, int]:
        """The run, and how many blocks the worker says that it computed; those that were there are untouched."""
        before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in place.root.glob("kernels/*/*.f32")}
        run = place.compute(recipe)
        assert all((path.stat().st_mtime_ns, path.read_bytes()) == was for path, was in before.items())
        new = len(list(place.root.glob("kernels/*/*.f32"))) - len(before)
        log = place.job_log(place.jobs()[0].id)
        assert any(f"blocks computed: {new}, found:" in line for line in log)
        return run, new

    try:
        first, count = computed(recipe)
        assert count == 2 * (1 + 1 + 3)  # checkpoints x (outputs of train and test, train x train, test x train, test x test)
        angles, takes = (sorted(set(first.splits["validation"][name])) for name in ("angle", "sequence"))
        record(recordings, angles[:5], [10, 11, 12, 13])  # new takes are for training
        second, count = computed(recipe)
        assert [len(chunk.ids) for chunk in second.manifest.chunks["train"]] == [18, 20]
        assert count == 2 * (1 + 2 + 1)  # new x (outputs; old and new train; test)
        record(recordings, [170, 175], takes)  # takes that test already
        third, count = computed(recipe)
        assert [len(chunk.ids) for chunk in third.manifest.chunks["validation"]] == [12, 4]
        assert count == 2 * (1 + 2 + 2)  # new x (outputs; both trains; old and new test)
        shutil.copy2(trained / "model_epoch_2.pt", folder)
        fourth, count = computed(recipe)
        assert count == len(fourth.manifest.kernel_keys(fourth.manifest.groups[-1])) == 4 + 3 + 3 + 4
        other = Recipe.from_dict({**recipe.to_dict(), "name": "other", "task": {"loss": "logistic", "margin": 2.0}})
        fifth, count = computed(other)
        assert count == 0
        assert fifth.id != fourth.id
        assert verify(place.root).damages == []
    finally:
        lab.stop_worker(place)


def record(recordings: Path, angles: Sequence[int], takes: Sequence[int]) -> None:
    """Further recordings, whose sound is an old one."""
    sources = sorted(recordings.rglob("*.wav"))
    for number, (angle, take) in enumerate(itertools.product(angles, takes)):
        target = recordings / f"deg{angle:03d}" / lab.MATERIAL / f"{lab.MATERIAL}_deg{angle:03d}_{lab.FREQUENCY}_{take:02d}.wav"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(sources[number], target)
