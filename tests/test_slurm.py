"""The program of docs/cluster.md, run on a real Slurm; `make test-cluster` starts one."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import lab
import numpy as np
import pytest
from lab import stop_worker
from test_cluster import ROOT, certificates, free_port, kernel_bytes, until

from tracin_core.records.jobs import Job
from tracin_core.records.workspace import open_workspace

pytestmark = pytest.mark.skipif("SLURM_CONF" not in os.environ, reason="no Slurm here: `make test-cluster` starts one")


def slurm_jobs() -> list[str]:
    """Ids of the jobs that run."""
    told = subprocess.run(
        ["squeue", "--noheader", "--states", "RUNNING", "--format", "%i"], capture_output=True, text=True, check=True
    )
    return told.stdout.split()


def documented_program(folder: Path, port: int) -> Path:
    """`workers.py` as in docs/cluster.md, with the lab's names replaced by those of this machine."""
    (text,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8"), re.DOTALL)
    for there, here in (
        ('"/shared/tracin-studio"', repr(str(ROOT))),
        ('"tls://login1"', '"tls://127.0.0.1"'),
        ("8786", str(port)),
    ):
        assert there in text
        text = text.replace(there, here)
    program = folder / "workers.py"
    program.write_text(text, encoding="utf-8")
    return program


def test_a_run_through_slurm_has_the_bytes_of_this_machine_though_a_job_is_cancelled(shelf: lab.Shelf, tmp_path: Path) -> None:
    here, there = open_workspace(tmp_path / "here"), open_workspace(tmp_path / "there")
    files = dict(zip(("tls_ca", "tls_cert", "tls_key"), certificates(tmp_path / "tracin-cluster"), strict=True))
    port = free_port()
    program = documented_program(tmp_path / "tracin-cluster", port)
    started = time.monotonic()
    with (tmp_path / "workers.log").open("wb") as log:
        workers = subprocess.Popen([sys.executable, program], env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=log, stderr=log)
    try:
        reference = here.compute(shelf.recipe(3))
        assert not slurm_jobs(), "no job runs before there is a block to compute"
        recipe = lab.recipe_for(
            shelf.recordings(), shelf.checkpoints(3), executor="dask", scheduler=f"tls://127.0.0.1:{port}", **files
        )
        job = there.compute(recipe, wait=False)
        assert isinstance(job, Job)
        until(lambda: kernel_bytes(there.root))
        (first, *_) = slurm_jobs()
        subprocess.run(["scancel", first], check=True)
        there.queue.wait(job.id)
        run = there.run(reference.id)
        assert kernel_bytes(there.root) == kernel_bytes(here.root)
        np.testing.assert_array_equal(run.view().influence(), reference.view().influence())
        recorded = {row["name"]: row["crc"] for row in there.catalogue.read("SELECT name, crc FROM block")}
        assert recorded == {row["name"]: row["crc"] for row in here.catalogue.read("SELECT name, crc FROM block")}
        print(f"{len(recorded)} blocks through Slurm, job {first} cancelled, {time.monotonic() - started:.0f} s in all")
        print(*there.job_log(job.id)[-8:], sep="\n")
        workers.send_signal(signal.SIGINT)
        workers.wait(60)
        until(lambda: not slurm_jobs())
    finally:
        workers.kill()
        workers.wait()
        stop_worker(here)
        stop_worker(there)
