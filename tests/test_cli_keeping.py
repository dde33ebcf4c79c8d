"""The verbs of upkeep in the shell: what is damaged, collected and exported is told, and the manual has a section for each."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from made_runs import flip

from tracin_core import cli

MANUAL = Path(__file__).resolve().parents[1] / "docs" / "command-line.md"
VERBS = ("export-zarr", "verify", "gc", "rebuild-catalogue", "doctor")


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[object]:
    def type_(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tracin", *words])
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capsys.readouterr()
        return int(end.value.code or 0), said.out, said.err

    return type_


@pytest.mark.parametrize("verb", VERBS)
def test_help_shows_an_example_and_the_manual_has_a_section(shell, verb: str) -> None:
    code, said, _ = shell(verb, "--help")
    assert code == 0
    assert f"Example: python -m tracin_core {verb}" in " ".join(said.split())
    options = {word for word in said.split() if word.startswith("--")} - {"--help", "--workspace", "--json"}  # told once, for all
    section = MANUAL.read_text().split(f"\n## {verb}\n")[1].split("\n## ")[0]
    assert all(f"`{option}`" in section for option in options if option.removeprefix("--") != verb)


def test_the_shell_tells_what_is_damaged_and_ends_with_one(shell, root: Path) -> None:
    assert shell("verify", "--workspace", str(root)) == (0, shell("verify", "--workspace", str(root))[1], "")
    block = sorted(root.glob("kernels/*/*.f32"))[0]
    flip(block, 9)
    code, said, error = shell("verify", "--workspace", str(root))
    assert (code, error) == (
        1,
        "Error: 1 files are damaged or gone; each line says what to do; computing a run again redoes only these.\n",
    )
    assert f"DAMAGED kernels/{block.parent.name}/{block.name} has checksum" in said
    (root / "tracin.sqlite3").write_bytes(b"no database" * 1000)
    code, said, _ = shell("doctor", "--workspace", str(root))
    assert (code, "LOOK catalogue" in said) == (1, True)
    code, said, error = shell("rebuild-catalogue", "--workspace", str(root))
    assert (code, "2 finished runs, 2 exclusion lists and 55 blocks" in said) == (1, True)
    assert f"Left out, DAMAGED: kernels/{block.parent.name}/{block.name}" in said
    assert shell("doctor", "--workspace", str(root))[0] == 0


def test_the_shell_collects_and_exports(shell, root: Path, tmp_path: Path) -> None:
    code, said, _ = shell("export-zarr", "--workspace", str(root), "--output-dir", str(tmp_path / "kernels.zarr"))
    assert (code, (tmp_path / "kernels.zarr" / "zarr.json").is_file()) == (0, True)
    shutil.rmtree(sorted(root.glob("runs/*"))[0])
    code, said, _ = shell("gc", "--dry-run", "--workspace", str(root))
    assert (code, "would be removed: blocks" in said, "nothing was removed" in said) == (0, True, True)
    code, said, _ = shell("gc", "--workspace", str(root))
    assert (code, "removed: previews" in said) == (0, True)
    assert shell("gc", "--workspace", str(root))[1] == "0 files, 0.0 MiB\n"
