"""What is sent arrives whole under a safe name, within limits, or leaves nothing; archives are plain, or refused."""

import io
import os
import stat
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from tracin_core.errors import InputError, NotFoundError
from tracin_core.records import uploads
from tracin_core.records.uploads import Inbox, Limits, UploadRefusedError, safe_path

SMALL = Limits(file=100_000, total=250_000, files=20)


@pytest.fixture
def inbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Inbox:
    monkeypatch.setattr(uploads, "SPARE_ROOM", 0)
    return Inbox(tmp_path, SMALL)


def send(inbox: Inbox, upload: uploads.Upload, name: str, data: bytes, declared: int | None = None) -> None:
    arrival = inbox.receive(upload, name, declared)
    try:
        for start in range(0, len(data), 1000):
            arrival.write(data[start : start + 1000])
        arrival.keep(declared)
    except BaseException:
        arrival.drop()
        raise


def files_in(inbox: Inbox) -> list[str]:
    return sorted(str(path.relative_to(inbox.place)) for path in inbox.place.rglob("*") if path.is_file())


def archive(*members: tuple[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", method) as file:
        for name, data in members:
            file.writestr(name, data)
    return held.getvalue()


# ---- whole, or not at all -------------------------------------------------------------------------------------------------------


def test_an_upload_appears_under_its_names_once_it_is_complete(inbox: Inbox) -> None:
    upload = inbox.begin("session", "Mei")
    send(inbox, upload, "lab/deg000/plastic/a 1.wav", b"w" * 2500, declared=2500)
    send(inbox, upload, "lab/模型_epoch_1.pt", b"p" * 10)
    assert uploads.kept(inbox.place) == []
    kept = inbox.finish(upload)
    assert (kept.folder / "lab/deg000/plastic/a 1.wav").read_bytes() == b"w" * 2500
    assert (kept.folder / "lab/模型_epoch_1.pt").stat().st_mode & 0o111 == 0
    assert uploads.kept(inbox.place) == [uploads.Kept(kept.id, kept.folder, "Mei", 2, 2510)]
    assert inbox.sweep() == []
    assert list(inbox.incoming.iterdir()) == []
    uploads.remove(inbox.place, kept.id)
    assert files_in(inbox) == []
    with pytest.raises(NotFoundError):
        uploads.remove(inbox.place, "../workspace")


def test_what_is_cancelled_or_refused_leaves_nothing_and_counts_nothing(inbox: Inbox) -> None:
    free = inbox.free()
    upload = inbox.begin("session")
    arrival = inbox.receive(upload, "a.pt")
    arrival.write(b"x" * 5000)
    inbox.cancel(upload)
    with pytest.raises(UploadRefusedError, match="cancelled"):
        arrival.write(b"x")
    arrival.drop()
    upload = inbox.begin("session")
    with pytest.raises(UploadRefusedError, match=r"Only 3 of 5 bytes"):
        send(inbox, upload, "b.pt", b"xyz", declared=5)
    with pytest.raises(UploadRefusedError, match=r"No file arrived"):
        inbox.finish(upload)
    assert files_in(inbox) == []
    assert inbox.free() == free


def test_limits_are_told_and_kept_by_size_in_all_and_in_number(inbox: Inbox) -> None:
    upload = inbox.begin("session")
    for declared in (None, 100_001):
        with pytest.raises(UploadRefusedError, match=r"larger than the 97\.7 KB .*TRACIN_UPLOAD_LIMIT") as refusal:
            send(inbox, upload, "large.pt", b"x" * 100_001, declared)
        assert refusal.value.status == 413
    for number in range(2):
        send(inbox, upload, f"{number}.pt", b"x" * 100_000)
    with pytest.raises(UploadRefusedError, match=r"may take 244\.1 KB in all .*48\.8 KB of it are free") as refusal:
        send(inbox, upload, "third.pt", b"x" * 60_000, declared=60_000)
    assert refusal.value.status == 413
    for number in range(2, 20):
        send(inbox, upload, f"{number}.txt", b"")
    with pytest.raises(UploadRefusedError, match="at most 20 files"):
        send(inbox, upload, "more.txt", b"")
    inbox.finish(upload)
    upload = inbox.begin("session")
    with pytest.raises(UploadRefusedError, match="TRACIN_UPLOAD_TOTAL"):
        send(inbox, upload, "again.pt", b"x" * 60_000)


def test_a_name_is_taken_once_and_another_sessions_upload_is_not_there(inbox: Inbox) -> None:
    upload = inbox.begin("session")
    send(inbox, upload, "a/b.pt", b"1")
    for name in ("a/b.pt", "A/B.PT"):
        with pytest.raises(UploadRefusedError, match="sent already"):
            inbox.receive(upload, name)
    send(inbox, upload, "x.pt", b"1")
    with pytest.raises(UploadRefusedError, match="a file has already"):
        send(inbox, upload, "x.pt/y.pt", b"1")
    for upload_id, session in ((upload.id, "other"), ("20260101-000000-abcdef", "session"), ("..", "session")):
        with pytest.raises(UploadRefusedError, match="not on its way"):
            inbox.find(upload_id, session)
    inbox.begin("other", lives=lambda session: session == "other")
    with pytest.raises(UploadRefusedError, match="not on its way"):
        inbox.find(upload.id, "session")


def test_what_a_killed_server_was_receiving_is_swept_by_the_next(inbox: Inbox) -> None:
    """A process that dies by SIGKILL in the middle; a living one's upload stays."""
    program = (
        "import sys, os, signal; from pathlib import Path; from tracin_core.records.uploads import Inbox, limits\n"
        "inbox = Inbox(Path(sys.argv[1]), limits()); upload = inbox.begin('s'); inbox.receive(upload, 'a.pt').write(b'x' * 5000)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    answer = subprocess.run([sys.executable, "-c", program, str(inbox.place.parent)], cwd=ROOT, timeout=60)
    assert answer.returncode == -9
    mine = inbox.begin("session")  # a beginning sweeps too
    assert [folder.name for folder in inbox.incoming.iterdir()] == [mine.id]
    assert Inbox(inbox.place.parent, SMALL).sweep() == []
    assert inbox.find(mine.id, "session") is mine


@pytest.mark.parametrize(("told", "bytes_"), [("500MB", 500 * 2**20), ("1.5 gb", 3 * 2**29), ("1000", 1000), ("2KB", 2048)])
def test_limits_come_from_the_environment(told: str, bytes_: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACIN_UPLOAD_LIMIT", told)
    assert uploads.limits().file == bytes_


@pytest.mark.parametrize("told", ["lots", "-5", "1K", "5 XB", "1e9"])
def test_a_limit_that_is_no_size_is_refused(told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACIN_UPLOAD_TOTAL", told)
    with pytest.raises(InputError, match=r"TRACIN_UPLOAD_TOTAL is .* as in 20GB"):
        uploads.limits()


# ---- names ----------------------------------------------------------------------------------------------------------------------

HOSTILE = [
    *(
        "",
        ".",
        "..",
        "/",
        "../a.pt",
        "a/../../b.pt",
        "a/./b.pt",
        "a//b.pt",
        "/etc/passwd.txt",
        "\\\\host\\share\\a.pt",
        "C:\\a.pt",
        "c:a.pt",
    ),
    *(
        "a\0.pt",
        "a.pt\0.txt",
        "a\n.pt",
        "\u202egnp.pt",
        "a\u200b.pt",
        ".hidden.pt",
        "~/.ssh/a.pt",
        "a/.git/b.pt",
        "a. /b.pt",
        "a./b.pt",
    ),
    *(
        " a.pt",
        "a.pt ",
        "a.pt.",
        "con.pt",
        "a/NUL/b.pt",
        "aux",
        "a?.pt",
        "a*.pt",
        'a".pt',
        "<b>.pt",
        "a|b.pt",
        "x" * 300 + ".pt",
        "a:b.pt",
    ),
    *("1/2/3/4/5/6/7.pt", "\ud800.pt", "..\\a.pt", "…/\u2028.pt"),
]
UNTAKEN = ["a.py", "a.sh", "a", "a.pkl", "a.html", "a.svg", "a.pt.exe", "pt", "deg000/a.so"]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_that_is_no_ordinary_one_is_refused(name: str) -> None:
    with pytest.raises(UploadRefusedError) as refusal:
        safe_path(name)
    assert refusal.value.status in (400, 415)
    assert str(refusal.value).isprintable()
    assert len(str(refusal.value)) < 350


@pytest.mark.parametrize("name", UNTAKEN)
def test_a_kind_that_is_not_taken_is_refused_as_such(name: str) -> None:
    with pytest.raises(UploadRefusedError, match="none of the kinds") as refusal:
        safe_path(name)
    assert refusal.value.status == 415


@given(st.text(max_size=40).map(lambda text: f"{text}.pt"))
def test_whatever_is_taken_stays_inside(name: str) -> None:
    """Joined to a folder, a taken name is a path below it, of the same parts, and names the same file to the system."""
    try:
        path = safe_path(name)
    except UploadRefusedError:
        return
    joined = os.path.normpath(os.path.join("/srv/uploads/id", str(path)))
    assert joined == f"/srv/uploads/id/{path}"
    assert os.fsdecode(os.fsencode(str(path))) == str(path)


# ---- archives -------------------------------------------------------------------------------------------------------------------

WAV = os.urandom(3000)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_plain_archive_is_unpacked(inbox: Inbox, method: int) -> None:
    upload = inbox.begin("session")
    members = [("deg000/box/a.wav", WAV), ("deg036/box/b.wav", WAV * 2), ("notes.md", b"hello"), ("__MACOSX/._a.wav", b"x")]
    data = archive(*members, method=method)
    send(inbox, upload, "recordings.zip", data, declared=len(data))
    assert upload.left_out == ["notes.md", "__MACOSX/._a.wav"]
    kept = inbox.finish(upload)
    assert (kept.folder / "recordings/deg000/box/a.wav").read_bytes() == WAV
    assert (kept.folder / "recordings/deg036/box/b.wav").read_bytes() == WAV * 2
    assert (kept.files, kept.bytes) == (2, 9000)


def test_an_archive_of_one_folder_is_that_folder(inbox: Inbox) -> None:
    upload = inbox.begin("session")
    send(inbox, upload, "x.zip", archive(("run7/model_epoch_1.pt", WAV), ("run7/model_epoch_2.pt", WAV)))
    assert sorted(path.name for path in (inbox.finish(upload).folder / "run7").iterdir()) == [
        "model_epoch_1.pt",
        "model_epoch_2.pt",
    ]


def patched(data: bytes, name: str, offset: int, value: bytes) -> bytes:
    """The archive with some bytes of the member's entry in its table of contents replaced."""
    place = data.rindex(name.encode()) - 46 + offset
    return data[:place] + value + data[place + len(value) :]


def linked(target: str) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as file:
        info = zipfile.ZipInfo("a.wav")
        info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        file.writestr(info, target)
    return held.getvalue()


def overlapping() -> bytes:
    """A whole member lies inside the data of another, and both are listed: more is held than was sent."""
    inner = archive(("b.wav", WAV))
    start, end = inner.index(b"PK\1\2"), inner.index(b"PK\5\6")
    outer = archive(("a.wav", inner[:start]))
    entry = inner[start : start + 42] + struct.pack("<I", outer.index(inner[:start])) + inner[start + 46 : end]
    place = outer.index(b"PK\5\6")
    listed = outer[outer.rindex(b"PK\1\2", 0, place) : place] + entry
    last = bytearray(outer[place:])
    last[8:16] = struct.pack("<HHI", 2, 2, len(listed))
    return outer[: place - (len(listed) - len(entry))] + listed + bytes(last)


def with_many(count: int) -> bytes:
    return archive(*[(f"{number}.txt", b"") for number in range(count)])


BAD_ARCHIVES: dict[str, tuple[Callable[[], bytes], str]] = {
    "no archive": (lambda: b"hello" * 100, "no plain ZIP"),
    "cut off": (lambda: archive(("a.wav", WAV))[:-30], "no plain ZIP"),
    "a flipped bit": (lambda: archive(("a.wav", WAV)).replace(WAV[:50], bytes(50)), "no plain ZIP"),
    "a bomb": (lambda: archive(("a.wav", bytes(90_000)), method=zipfile.ZIP_DEFLATED), "at most 10 times"),
    "a lie about the size": (lambda: patched(archive(("a.wav", WAV)), "a.wav", 24, struct.pack("<I", 2000)), "no plain ZIP"),
    "another compression": (lambda: archive(("a.wav", WAV), method=zipfile.ZIP_BZIP2), "neither stored nor deflated"),
    "encrypted": (lambda: patched(archive(("a.wav", WAV)), "a.wav", 8, b"\1\0"), "encrypted"),
    "a link": (lambda: linked("/etc/passwd"), "link or a device"),
    "an archive inside": (lambda: archive(("a.zip", archive(("b.wav", WAV)))), "archive inside"),
    "a tar inside": (lambda: archive(("a.tar.gz", WAV)), "archive inside"),
    "traversal": (lambda: archive(("../../a.wav", WAV)), "empty or dots"),
    "an absolute name": (lambda: archive(("/tmp/a.wav", WAV)), "empty or dots"),
    "a backslash": (lambda: archive(("a\\b.wav", WAV)), "it holds one of"),
    "a NUL": (lambda: archive(("aXb.wav", WAV)).replace(b"aXb.wav", b"a\0b.wav"), "NUL|no plain ZIP"),
    "a name twice": (lambda: archive(("a.wav", WAV), ("A.wav", WAV)), "twice"),
    "overlapping members": (overlapping, "shares its place"),
    "too many members": (lambda: with_many(21), "at most 20"),
    "more than a file may have": (lambda: archive(("a.wav", os.urandom(99_000)), ("b.wav", os.urandom(99_000))), "larger than"),
    "a file as a folder": (lambda: archive(("a.wav", WAV), ("a.wav/b.wav", WAV)), "a file has already"),
}


@pytest.mark.parametrize("kind", BAD_ARCHIVES)
def test_an_archive_that_is_not_plain_leaves_nothing(inbox: Inbox, kind: str) -> None:
    make, reason = BAD_ARCHIVES[kind]
    upload = inbox.begin("session")
    free = inbox.free()
    with pytest.raises(UploadRefusedError, match=reason):
        send(inbox, upload, "sent.zip", make())
    assert [name for name in files_in(inbox) if not name.endswith("/owner")] == []
    assert inbox.free() == free
    inbox.cancel(upload)
    assert files_in(inbox) == []


def test_unpacking_stops_at_the_limit_in_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "SPARE_ROOM", 0)
    inbox = Inbox(tmp_path, Limits(file=100_000, total=90_000, files=9))
    upload = inbox.begin("session")
    packed = archive(*[(f"{n}.wav", os.urandom(12_000) + bytes(38_000)) for n in range(2)], method=zipfile.ZIP_DEFLATED)
    assert len(packed) < 80_000
    with pytest.raises(UploadRefusedError, match="TRACIN_UPLOAD_TOTAL"):
        send(inbox, upload, "sent.zip", packed)
    assert inbox.free() == 90_000
    assert [name for name in files_in(inbox) if not name.endswith("/owner")] == []


def test_a_table_of_contents_is_measured_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "DIRECTORY_BYTES", 1000)
    held = io.BytesIO(with_many(20))
    monkeypatch.setattr(zipfile.ZipFile, "__init__", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(UploadRefusedError, match="table of contents"):
        uploads.contents(held, SMALL)
