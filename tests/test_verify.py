"""Every damage of a store is named, and nothing else is; verifying changes nothing."""

import io
import random
import shutil
from pathlib import Path

import lab
import numpy as np
import pandas as pd
import pytest
import soundfile
from made_runs import PICTURE, SIZES, SOUND, WORDS, flip, names_of

from tracin_core.data.files import write_json
from tracin_core.data.seals import json_damage, png_damage, sealed_text, sealed_wav, text_damage, unsealed_text, wav_damage
from tracin_core.errors import DamagedBlockError, WorkspaceError
from tracin_core.records import maintenance
from tracin_core.records.datasets import sealed_chunks, stored_split
from tracin_core.records.maintenance import SEAL, collect_garbage, rebuild_catalogue, verify
from tracin_core.records.store import block_damage
from tracin_core.records.workspace import open_workspace


def checked_files(root: Path) -> list[Path]:
    patterns = ("kernels/*/*", "datasets/*/*.json", "datasets/*/*/*", "checkpoints/*", "runs/*/run.json", "runs/*/samples.csv")
    return sorted(path for pattern in patterns for path in root.glob(pattern))


def test_a_store_as_it_was_written_has_no_damage(root: Path) -> None:
    found = verify(root)
    assert (found.damages, found.unsealed) == ([], [])
    per_run = 2 * (4 + 2 * 3 + 4)  # two checkpoints: outputs, two triangles, a rectangle, of two chunks a side
    samples = 2 * sum(map(sum, SIZES.values()))
    kept = {"splits": 2, "lists of chunks": 2, "inputs": 8, "previews": 3 * samples, "checkpoints": 4}
    assert found.files == {"blocks": 2 * per_run, "groups": 4, **kept, "runs": 2, "catalogue": 1}


def flips_are_reported(root: Path, flips: int) -> None:
    """Bits of one file after the other, wherever in the store, are turned and turned back."""
    seed = random.SystemRandom().randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    files = checked_files(root)
    for _ in range(flips):
        (path,) = chance.choices(files, weights=[file.stat().st_size for file in files])
        bit = chance.randrange(8 * path.stat().st_size)
        flip(path, bit)
        assert path.relative_to(root).as_posix() in names_of(verify(root).damages), f"bit {bit}"
        flip(path, bit)
    assert verify(root).damages == []


def test_flipped_bits_are_reported_with_the_files_name(root: Path) -> None:
    flips_are_reported(root, 40)


@pytest.mark.slow
def test_a_thousand_flipped_bits_are_reported_with_the_files_name(root: Path) -> None:
    flips_are_reported(root, 1000)


@pytest.mark.parametrize("kind", ["groups", "inputs", "splits", "lists of chunks"])
def test_every_bit_of_a_header_counts(root: Path, kind: str) -> None:
    """Text has bits that readers overlook: white space, the case of a digit, a key that is not looked at."""
    pattern, check = maintenance.FILES[kind]
    path = sorted(root.glob(pattern))[0]
    whole = path.read_bytes()
    for bit in range(0, 8 * min(len(whole), 400), 7):  # each bit of a byte in turn
        flip(path, bit)
        assert check(path), f"bit {bit} of {whole[bit // 8 : bit // 8 + 10]!r}"
        path.write_bytes(whole)


def test_every_bit_of_a_preview_counts() -> None:
    for whole, check in ((PICTURE, png_damage), (sealed_wav(SOUND), wav_damage), (sealed_text(WORDS).encode(), text_damage)):
        assert check(whole) == ""
        for bit in range(8 * len(whole)):
            raw = bytearray(whole)
            raw[bit // 8] ^= 1 << bit % 8
            assert check(bytes(raw)), f"bit {bit}"
        for length in range(len(whole)):
            left = whole[:length]
            unsealed = check is text_damage and left.endswith(b"\n")  # as an older version may have left it
            assert check(left) or (unsealed and check(left) is None), f"cut off after {length} bytes"
        assert check(whole + b"more")


def test_a_sealed_sound_plays_as_before_and_a_text_reads_so() -> None:
    (there, rate), (here, same) = (soundfile.read(io.BytesIO(raw), dtype="int16") for raw in (SOUND, sealed_wav(SOUND)))
    np.testing.assert_array_equal(there, here)
    assert rate == same == 48_000
    assert unsealed_text(sealed_text(WORDS)) == unsealed_text(WORDS) == WORDS


def test_what_an_older_version_left_without_a_checksum_is_told_and_is_no_damage(root: Path) -> None:
    split, chunks = (sorted(root.glob(f"datasets/*/{kind}-*.json"))[0] for kind in ("split", "chunks"))
    write_json(split, {"box_deg000_1000hz_00": "train"})
    write_json(chunks, {"train": [["box_deg000_1000hz_00"]]})
    for ending, content in (("wav", SOUND), ("txt", WORDS.encode())):
        sorted(root.glob(f"datasets/*/previews/*.{ending}"))[0].write_bytes(content)
    found = verify(root)
    assert found.damages == []
    told = {kind: number for kind, number in found.files.items() if kind.startswith("unsealed")}
    assert told == {"unsealed splits": 1, "unsealed lists of chunks": 1, "unsealed previews": 2}


def test_a_damaged_split_or_list_of_chunks_is_refused_with_what_to_do(tmp_path: Path) -> None:
    """Not read as it is: a sample would leave its side without a word, and with it the blocks it is in."""
    samples = pd.DataFrame({"id": [f"s{k}" for k in range(18)], "sequence": np.arange(18) // 3, "label": np.arange(18) % 3})
    samples = samples.assign(digest=samples["id"], angle=samples["label"])
    section = lab.SPLIT
    divided = stored_split(samples, section, tmp_path, print)
    sealed_chunks(divided, tmp_path / "chunks-x.json")
    assert stored_split(samples, section, tmp_path, print)["split"].tolist() == divided["split"].tolist()
    acts = {
        "split": lambda: stored_split(samples, section, tmp_path, print),
        "chunks": lambda: sealed_chunks(divided, tmp_path / "chunks-x.json"),
    }
    for name, act in acts.items():
        path = next(tmp_path.glob(f"{name}-*.json"))
        whole = path.read_bytes()
        path.write_bytes(whole.replace(b'"s3"', b'"s#"'))
        with pytest.raises(
            DamagedBlockError, match=rf"'{path.name}' is not as it was sealed; restore it from a copy, or remove it"
        ):
            act()
        path.write_bytes(whole)
        act()
        assert json_damage(path) == ""


def test_what_is_cut_off_emptied_or_gone_is_named(root: Path) -> None:
    blocks = sorted(root.glob("kernels/*/*.f32"))
    blocks[0].write_bytes(blocks[0].read_bytes()[:-4])
    blocks[1].write_bytes(b"")
    blocks[2].write_bytes(bytes(4))  # the checksum of nothing is 0
    blocks[3].unlink()
    shutil.copyfile(blocks[5], blocks[4])  # whole, but another block
    run = next(run for run in root.glob("runs/*") if blocks[3].parent.name not in (run / "run.json").read_text())
    (run / "run.json").unlink()
    expected = {path.relative_to(root).as_posix() for path in blocks[:5]} | {f"runs/{run.name}/run.json"}
    assert names_of(verify(root).damages) >= expected


def test_a_block_in_anothers_place_is_named(root: Path) -> None:
    """Its own checksum is right, but not the one that was recorded under this name."""
    by_size: dict[int, list[Path]] = {}
    for path in sorted(root.glob("kernels/*/*.f32")):
        by_size.setdefault(path.stat().st_size, []).append(path)
    here, there = next(paths for paths in by_size.values() if len(paths) > 1)[:2]
    shutil.copyfile(there, here)
    (damage,) = verify(root).damages
    assert damage.file == here.relative_to(root).as_posix()
    assert "but the catalogue has" in damage.reason


def test_nothing_with_the_checksum_of_nothing_is_no_block(tmp_path: Path) -> None:
    (tmp_path / "block").write_bytes(bytes(4))
    assert block_damage(tmp_path / "block") == "has 4 bytes, which is no block"


def test_a_damaged_seal_is_named_and_a_run_without_one_is_told(root: Path) -> None:
    first, second = sorted(root.glob("runs/*"))
    (first / SEAL).write_text("what is this")
    (second / SEAL).unlink()
    found = verify(root)
    assert names_of(found.damages) == {f"runs/{first.name}/{SEAL}"}
    assert found.unsealed == [second.name]


def test_a_damaged_verdict_is_named(root: Path) -> None:
    place = open_workspace(root)
    run = place.run(place.runs()["id"].iloc[0])
    pair = run.train_pairs.iloc[0]
    place.decide(run, (pair["id1"], pair["id2"]), "exclude", who="Mei", why="a truck passed")
    found = verify(root)
    assert (found.damages, found.files["verdicts"]) == ([], 1)
    path = root / "runs" / run.id / "verdicts.jsonl"
    path.write_text(path.read_text().replace("truck", "train"))
    (damage,) = verify(root).damages
    assert damage.file == f"runs/{run.id}/verdicts.jsonl"
    assert "Line 1" in damage.reason


def test_a_run_that_a_later_one_replaced_is_verified_too(root: Path) -> None:
    """Links to it go on working, so that what they show has to be right."""
    place = open_workspace(root)
    run = place.run(place.runs()["id"].iloc[0])
    place.register_run(run.id, run.recipe, state="superseded")
    assert verify(root).damages == []
    flip(root / "runs" / run.id / "samples.csv", 77)
    assert names_of(verify(root).damages) == {f"runs/{run.id}/samples.csv"}
    (root / "runs" / run.id / "run.json").unlink()
    assert names_of(verify(root).damages) == {f"runs/{run.id}/run.json"}


def test_verify_changes_nothing_and_needs_no_catalogue(root: Path) -> None:
    flip(sorted(root.glob("datasets/*/inputs/*"))[0], 1500)
    (root / "tracin.sqlite3").write_bytes(b"no database" * 1000)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert len(verify(root).damages) == 2
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before


def test_another_directory_is_no_workspace_and_none_is_made(tmp_path: Path) -> None:
    for act in (verify, rebuild_catalogue, collect_garbage):
        with pytest.raises(WorkspaceError, match="is not a workspace"):
            act(tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []
