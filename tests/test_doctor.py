"""The doctor names each fault of an installation, and readiness says whether a workspace serves."""

import os
import sqlite3
import time
from pathlib import Path

import numpy as np
import pytest

from tracin_core.records import doctor
from tracin_core.records.maintenance import verify
from tracin_core.records.workspace import Workspace, open_workspace


def wrong(root: Path) -> dict[str, str]:
    return {finding.name: finding.detail for finding in doctor.examine(root) if not finding.passed}


def test_verify_and_doctor_do_not_wait_for_whoever_writes(root: Path) -> None:
    with open_workspace(root).catalogue.transaction():
        assert verify(root).damages == []
        assert wrong(root) == {}


def test_a_sound_installation_has_nothing_wrong_and_nothing_is_made(root: Path, tmp_path: Path) -> None:
    before = sorted(root.rglob("*"))
    assert wrong(root) == {}
    assert sorted(root.rglob("*")) == before
    assert wrong(tmp_path / "nowhere") == {}
    assert not (tmp_path / "nowhere").exists()


def test_the_doctor_names_each_fault(root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pins = tmp_path / "requirements.txt"
    pins.write_text("numpy==1.0\n# words\nno-such-package==2.0\n")
    detail = doctor.packages(pins).detail
    assert f"numpy {np.__version__} instead of 1.0; no-such-package is missing instead of 2.0" in detail
    assert not doctor.file_system(root, lambda: iter([("/", "ext4"), (os.path.realpath(root.parent), "nfs4")])).passed
    assert doctor.file_system(root, lambda: iter([("/", "nfs"), (os.path.realpath(root.parent), "ext4")])).passed
    assert not doctor.room(root, least=2**80).passed
    (root / "tracin.sqlite3").unlink()
    open_workspace(root)
    assert "does not know 2 of 2 finished runs" in wrong(root)["catalogue"]
    (root / "tracin.sqlite3").write_bytes(b"no database" * 1000)
    assert f"rebuild-catalogue --workspace {root}" in wrong(root)["catalogue"]


def test_a_wal_file_is_told(root: Path) -> None:
    with sqlite3.connect(root / "tracin.sqlite3") as connection:
        connection.execute("PRAGMA journal_mode = WAL")
    connection.close()
    assert "WAL mode" in wrong(root)["catalogue"]


def running_job(place: Workspace, beat: float) -> None:
    with place.catalogue.transaction() as connection:
        connection.execute(
            "INSERT INTO job (id, kind, state, title, request, request_digest, created, position, beat) "
            "VALUES ('j', 'demo', 'running', 't', '{}', 'd', 1.0, 1, ?)",
            (beat,),
        )


def test_a_dead_or_silent_worker_is_told(root: Path) -> None:
    place = open_workspace(root)
    assert place.readiness() == {}
    running_job(place, time.time() - 100)
    assert "No worker is alive; job j runs, last heartbeat 100 s ago" in wrong(root)["worker"]
    assert "is dead" in place.readiness()["worker"]
    with place.queue.worker_lock():
        assert "may hang" in wrong(root)["worker"]
        assert "no sign of life for 100 s" in place.readiness()["worker"]
        with place.catalogue.transaction() as connection:
            connection.execute("UPDATE job SET beat = ?", (time.time(),))
        assert wrong(root) == {}
        assert place.readiness() == {}


def test_readiness_writes_to_the_catalogue(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = open_workspace(root)
    monkeypatch.setattr(doctor, "WRITE_SECONDS", 0.05)
    with place.catalogue.transaction():
        assert "locked" in place.readiness()["catalogue"]
    (root / "tracin.sqlite3").write_bytes(b"no database" * 1000)
    assert "cannot be written to" in place.readiness()["catalogue"]
