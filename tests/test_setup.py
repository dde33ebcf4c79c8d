"""The environment: exact pins, a reason for each, and scripts that also run on macOS' old bash."""

import ast
import os
import re
import subprocess
import sys
from importlib.metadata import packages_distributions, version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
REQUIREMENTS = [f"requirements{extra}.txt" for extra in ("", "-test", "-bench", "-umap", "-cluster", "-oidc")]
SCRIPTS = sorted(path for path in [*(ROOT / "scripts").iterdir(), ROOT / ".ci" / "run"] if path.is_file())
# Words that bash 3.2 or a BSD tool does not know.
TOO_NEW = [
    r"\bdeclare -A\b",
    r"\bmapfile\b",
    r"\breadarray\b",
    r"\$\{\w+(,,|\^\^)",
    r"\bsed -i\b",
    r"\breadlink -f\b",
    r"\bsha256sum\b",
    r"\bgrep -P\b",
    r"&>>",
]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(file: str) -> dict[str, str]:
    """Versions by name; a line of any other form is an error."""
    lines = [line for line in (ROOT / file).read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    split = [re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.]+)", line) for line in lines]
    loose = [line for line, match in zip(lines, split, strict=True) if match is None]
    assert not loose, f"{file} does not pin {', '.join(loose)}"
    return {normal(match[1]): match[2] for match in split if match is not None}


@pytest.mark.parametrize("file", ["requirements.txt", "requirements-test.txt", "requirements-cluster.txt"])
def test_the_pinned_version_is_the_installed_one(file: str) -> None:
    """What is tested is what others will install; `+cpu` and the like name a build of the same version."""
    installed = {name: version(name).split("+")[0] for name in pins(file)}
    assert installed == pins(file)


def test_a_peer_that_tests_use_too_has_one_version() -> None:
    """Benchmarks install their peers when they are run, into the same environment."""
    shared = pins("requirements-test.txt").keys() & pins("requirements-bench.txt").keys()
    assert shared == {"captum"}
    assert {name: pins("requirements-bench.txt")[name] for name in shared} == {
        name: pins("requirements-test.txt")[name] for name in shared
    }


@pytest.mark.parametrize("file", REQUIREMENTS)
def test_each_requirement_says_why(file: str) -> None:
    reasons = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    section = reasons.split(f"(`{file}`)")[1].split("\n## ")[0]
    listed = [normal(name) for name in re.findall(r"^\| ([\w.-]+) \|", section, re.MULTILINE) if name != "package"]
    assert listed == list(pins(file))


def test_torch_is_pinned_for_pip() -> None:
    assert pins("requirements.txt")["torch"] == "2.13.0"


def test_the_product_imports_only_what_it_requires() -> None:
    """A package that merely came along with another one may leave with it."""
    files = [*ROOT.glob("*.py"), *(ROOT / "pages").rglob("*.py"), *(ROOT / "tracin_core").rglob("*.py")]
    imported: set[str] = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported.update(alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.split(".")[0])
    foreign = imported - sys.stdlib_module_names - {"tracin_core", "pages", "app"}
    owners = packages_distributions()
    unlisted = sorted(
        name for name in foreign if not {normal(owner) for owner in owners.get(name, ())} & set(pins("requirements.txt"))
    )
    assert not unlisted, f"imported, but not in requirements.txt: {', '.join(unlisted)}"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_runs_anywhere(script: Path) -> None:
    text = script.read_text(encoding="utf-8")
    assert os.access(script, os.X_OK), f"{script.name} is not executable"
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "set -euo pipefail" in text
    newer = [word for word in TOO_NEW if re.search(word, text)]
    assert not newer, f"{script.name} uses {newer}, which macOS does not have"
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_a_second_setup_only_compares(tmp_path: Path) -> None:
    """Nothing is installed again, and no stamp is touched, when the requirements are as they were."""
    place = copy_of_setup(tmp_path)
    environment = place / ".venv"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    (environment / "installed").mkdir()
    for file in ("requirements.txt", "requirements-test.txt"):
        (environment / "installed" / file).write_bytes((place / file).read_bytes())
    before = sorted((path.name, path.stat().st_mtime_ns) for path in (environment / "installed").iterdir())
    done = subprocess.run(
        ["scripts/setup", "requirements-test.txt"], cwd=place, capture_output=True, text=True, timeout=60, env=without_pip()
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert before == sorted((path.name, path.stat().st_mtime_ns) for path in (environment / "installed").iterdir())


def test_an_old_python_is_refused_in_a_sentence(tmp_path: Path) -> None:
    place = copy_of_setup(tmp_path)
    old = tmp_path / "python-of-2021"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.10.0"\nexit 1\n')
    old.chmod(0o755)
    done = subprocess.run(
        ["scripts/setup"], cwd=place, capture_output=True, text=True, timeout=60, env={**without_pip(), "PYTHON": str(old)}
    )
    assert done.returncode == 1
    assert "Python 3.11 or newer is needed" in done.stderr
    assert "is Python 3.10.0" in done.stderr
    assert not (place / ".venv").exists()


def copy_of_setup(tmp_path: Path) -> Path:
    place = tmp_path / "clone"
    (place / "scripts").mkdir(parents=True)
    for file in ("scripts/setup", *REQUIREMENTS):
        target = place / file
        target.write_bytes((ROOT / file).read_bytes())
        target.chmod(0o755)
    return place


def without_pip() -> dict[str, str]:
    """An environment in which pip can reach nothing, so that an attempt to install fails at once."""
    return {**os.environ, "PIP_NO_INDEX": "1"}
