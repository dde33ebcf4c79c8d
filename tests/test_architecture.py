"""Who may import whom: the rooms of the house, and the doors between them (docs/architecture.md)."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LONGEST_PAGE = 60  # lines; what does not fit belongs to pages/shared or below

# What a room may import of this repository. A name stands for itself and all below it.
DOORS = {
    "app.py": ("pages.shared",),
    "pages": ("pages.shared", "tracin_core.charts"),
    "pages/shared": (
        "pages.shared",
        "tracin_core.charts",
        "tracin_core.records.workspace",
        "tracin_core.records.runs",  # the types of the workspace's answers
        "tracin_core.records.jobs",
        "tracin_core.records.evaluations",
        "tracin_core.records.trainings",
        "tracin_core.records.calibrations",
        "tracin_core.records.evidence",
        "tracin_core.records.faithfulness",
        "tracin_core.records.access",
        "tracin_core.records.uploads",
        "tracin_core.records.findings",
        "tracin_core.records.differences",
        "tracin_core.records.past_lists",
        "tracin_core.records.verdicts",
        "tracin_core.records.report",
        "tracin_core.scores",
        "tracin_core.data",
        "tracin_core.errors",
        "tracin_core.recipe",
        "tracin_core.training_settings",
    ),
    "tracin_core/data": ("tracin_core.data", "tracin_core.errors", "tracin_core.recipe"),
    "tracin_core/engine": (
        "tracin_core.engine",
        "tracin_core.data",
        "tracin_core.errors",
        "tracin_core.recipe",
        "tracin_core.training_settings",
    ),
    "tracin_core/scores": ("tracin_core.scores", "tracin_core.data", "tracin_core.errors", "tracin_core.recipe"),
    "tracin_core/records": (
        "tracin_core.records",
        "tracin_core.scores",
        "tracin_core.data",
        "tracin_core.errors",
        "tracin_core.recipe",
        "tracin_core.__version__",
        "tracin_core.training_settings",
    ),
    "tracin_core/records/report": (
        "tracin_core.records",
        "tracin_core.scores",
        "tracin_core.charts",
        "tracin_core.data",
        "tracin_core.errors",
        "tracin_core.__version__",
    ),
    "tracin_core/blocks.py": ("tracin_core.engine", "tracin_core.records", "tracin_core.errors", "tracin_core.recipe"),
    "tracin_core/cluster.py": (
        "tracin_core.blocks",
        "tracin_core.engine.ENGINE_VERSION",  # torch stays out until a block is computed
        "tracin_core.records.store",
        "tracin_core.data.files",
        "tracin_core.errors",
        "tracin_core.recipe",
    ),
    "tracin_core/reading.py": (
        "tracin_core.engine",
        "tracin_core.records",
        "tracin_core.data",
        "tracin_core.errors",
        "tracin_core.recipe",
    ),
    "tracin_core/evaluating": (
        "tracin_core.evaluating",
        "tracin_core.engine",
        "tracin_core.reading",
        "tracin_core.records",
        "tracin_core.scores",
        "tracin_core.data",
        "tracin_core.errors",
        "tracin_core.recipe",
    ),
    "tracin_core/worker": (
        "tracin_core.worker",
        "tracin_core.evaluating",
        "tracin_core.blocks",
        "tracin_core.reading",
        "tracin_core.cluster",
        "tracin_core.engine",
        "tracin_core.records",
        "tracin_core.scores",
        "tracin_core.data",
        "tracin_core.errors",
        "tracin_core.recipe",
    ),
    "tracin_core/cli": (
        "tracin_core.cli",
        "tracin_core.records",
        "tracin_core.scores.exclusions",
        "tracin_core.scores.thresholds",
        "tracin_core.data.files",
        "tracin_core.data.recordings",
        "tracin_core.errors",
        "tracin_core.recipe",
        "tracin_core.__version__",
    ),
    "tracin_core/charts.py": ("tracin_core.errors",),
    "tracin_core/notebook.py": (
        "tracin_core.engine",
        "tracin_core.records.checkpoint_files",
        "tracin_core.scores",
        "tracin_core.data",
        "tracin_core.errors",
        "tracin_core.recipe",
    ),
    "tracin_core/errors.py": (),
    "tracin_core/recipe.py": ("tracin_core.errors",),
    "tracin_core/training_settings.py": ("tracin_core.recipe",),
    "tracin_core/__main__.py": ("tracin_core.cli",),
    # The front door: its names load lazily, which `test_light_imports` holds it to.
    "tracin_core/__init__.py": (
        "tracin_core.engine.kernel",
        "tracin_core.engine.recording",
        "tracin_core.notebook",
        "tracin_core.records.workspace",
        "tracin_core.recipe",
    ),
}

# The only places of a heavy or dangerous import.
HOMES = {
    "streamlit": ("app.py", "pages"),
    "torch": ("tracin_core/engine", "tracin_core/worker", "tracin_core/blocks.py"),
    "sqlite3": ("tracin_core/records",),
    "sklearn": ("tracin_core/scores",),
    "plotly": ("tracin_core/charts.py", "tracin_core/records/report", "pages"),
    "distributed": ("tracin_core/cluster.py",),
    "dask": (),
    "dask_jobqueue": (),
    "captum": (),
    "pytest": (),
}

UNPICKLING = {
    "pickle": {"load", "loads", "Unpickler"},
    "marshal": {"load", "loads"},
    "shelve": {"open"},
    "pandas": {"read_pickle"},
    "pd": {"read_pickle"},
    "joblib": {"load"},
    "dill": {"load", "loads"},
    "cloudpickle": {"load", "loads"},
}


def python_files(*places: str) -> list[Path]:
    """The repository's Python files below these places, relative to its root."""
    found: set[Path] = set()
    for place in places:
        path = ROOT / place
        found.update([path] if path.is_file() else path.rglob("*.py"))
    return sorted(path.relative_to(ROOT) for path in found)


PRODUCT = python_files("app.py", "pages", "tracin_core")
EVERYTHING = sorted({*PRODUCT, *python_files("tests", "benchmarks")})


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"), filename=str(path))


def imports(path: Path) -> Iterator[str]:
    """Full names of what the file imports anywhere in it, also by `import_module` of a fixed name."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = absolute(path, node)
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and called(node) in {"import_module", "importlib.import_module", "__import__"}:
            first = node.args[0] if node.args else None
            if isinstance(first, ast.Constant):
                yield str(first.value)


def absolute(path: Path, node: ast.ImportFrom) -> str:
    """The module of a `from ... import`, with its dots resolved."""
    if not node.level:
        return node.module or ""
    package = path.parts[: len(path.parts) - node.level]
    return ".".join([*package, *([node.module] if node.module else [])])


def called(node: ast.Call) -> str:
    return ast.unparse(node.func)


def is_within(name: str, homes: tuple[str, ...], separator: str) -> bool:
    return any(name == home or name.startswith(home + separator) for home in homes)


def room_of(path: Path) -> str:
    """The most particular entry of DOORS that the file belongs to."""
    rooms = [room for room in DOORS if is_within(path.as_posix(), (room,), "/")]
    assert rooms, f"{path} belongs to no room: add it to DOORS in {Path(__file__).name} and to docs/architecture.md"
    return max(rooms, key=len)


def from_here(name: str) -> bool:
    return name.split(".")[0] in {"tracin_core", "pages", "app"}


@pytest.mark.parametrize("path", PRODUCT, ids=str)
def test_a_file_imports_only_what_its_room_may(path: Path) -> None:
    doors = DOORS[room_of(path)]
    # `from tracin_core import x` of the room's own package reads as tracin_core.x.
    shut = sorted({name for name in imports(path) if from_here(name) and not is_within(name, doors, ".")})
    assert not shut, f"{path} imports {', '.join(shut)}; it may import {', '.join(doors) or 'nothing of this repository'}"


def test_the_report_stands_above_the_other_records() -> None:
    """It may import each of them, and none of them imports it; their own door alone would let them."""
    below = [path for path in PRODUCT if room_of(path) == "tracin_core/records"]
    strays = [str(path) for path in below if any(is_within(name, ("tracin_core.records.report",), ".") for name in imports(path))]
    assert below
    assert not strays, f"{', '.join(strays)} imports the report; what both need belongs to the records"


@pytest.mark.parametrize("package", HOMES)
def test_a_heavy_import_stays_in_its_home(package: str) -> None:
    homes = HOMES[package]
    strays = [str(path) for path in PRODUCT if not is_within(path.as_posix(), homes, "/") and package in packages(path)]
    assert not strays, f"{package} is imported by {', '.join(strays)}; its home is {', '.join(homes) or 'tests and benchmarks'}"


def packages(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


@pytest.mark.parametrize("path", EVERYTHING, ids=str)
def test_torch_loads_weights_only(path: Path) -> None:
    """Each `torch.load` says `weights_only=True`, and nothing anywhere says False."""
    for node in ast.walk(tree(path)):
        if not isinstance(node, ast.Call):
            continue
        said = [keyword.value for keyword in node.keywords if keyword.arg == "weights_only"]
        is_true = len(said) == 1 and isinstance(said[0], ast.Constant) and said[0].value is True
        assert is_true or not said, f"{path}:{node.lineno} says weights_only={ast.unparse(said[0])}; only True is allowed"
        assert is_true or called(node) != "torch.load", f"{path}:{node.lineno} calls torch.load without weights_only=True"


@pytest.mark.parametrize("path", EVERYTHING, ids=str)
def test_nothing_is_unpickled(path: Path) -> None:
    bad = sorted(name for name in imports(path) if is_unpickler(name))
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Attribute) and is_unpickler(ast.unparse(node)):
            bad.append(f"{ast.unparse(node)} in line {node.lineno}")
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            bad.append(f"allow_pickle in line {node.lineno}")
    assert not bad, f"{path} unpickles: {', '.join(bad)}"


def is_unpickler(name: str) -> bool:
    module, _, function = name.rpartition(".")
    return function in UNPICKLING.get(module, ())


FETCHING = ("urllib.request", "http.client", "ftplib", "requests", "httpx", "aiohttp", "urllib3", "websockets", "pandas.read_html")


@pytest.mark.parametrize("path", PRODUCT, ids=str)
def test_nothing_is_fetched(path: Path) -> None:
    """No address is ever asked for anything: not one from a user, not one of our own."""
    bad = sorted(name for name in imports(path) if is_within(name, FETCHING, "."))
    assert not bad, f"{path} imports {', '.join(bad)}; the server fetches nothing"


@pytest.mark.parametrize("path", [path for path in PRODUCT if path.parts[0] == "pages"], ids=str)
def test_a_page_sets_nothing_of_the_server(path: Path) -> None:
    """Roots, plugins, quotas and who may come in are the environment's and the workspace's; pages only read them."""
    bad = [f"line {node.lineno}: {ast.unparse(node)}" for node in ast.walk(tree(path)) if sets_environment(node)]
    assert not bad, f"{path} sets the server's configuration: {'; '.join(bad)}"
    assert not {"tracin_core.records.access.add", "tracin_core.records.access.revoke"} & set(imports(path))


def sets_environment(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        return called(node) in {
            "os.putenv",
            "os.environ.update",
            "os.environ.setdefault",
            "os.environ.pop",
            "access.add",
            "access.revoke",
        }
    targets = node.targets if isinstance(node, ast.Assign | ast.Delete) else []
    return any(isinstance(target, ast.Subscript) and ast.unparse(target.value) == "os.environ" for target in targets)


def test_a_page_fits_on_a_screen() -> None:
    pages = [path for path in PRODUCT if path.parent == Path("pages")]
    lengths = {str(path): len((ROOT / path).read_text(encoding="utf-8").splitlines()) for path in pages}
    long = [f"{page} has {lines} lines" for page, lines in lengths.items() if lines > LONGEST_PAGE]
    assert not long, f"{', '.join(long)}; a page has at most {LONGEST_PAGE}"


@pytest.mark.parametrize(
    "module",
    [
        "tracin_core",
        "tracin_core.records.workspace",
        "tracin_core.records.interchange",
        "tracin_core.scores.view",
        "tracin_core.scores.comparison",
        "tracin_core.scores.maps",
        "tracin_core.cli",
        "tracin_core.cluster",
    ],
)
def test_light_imports(module: str) -> None:
    """What the web process and the shell import brings neither torch nor streamlit with it, nor scikit-learn."""
    program = f"import sys, {module}; print(*sorted({{'torch', 'streamlit', 'captum', 'sklearn'}} & set(sys.modules)))"
    answer = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env={**os.environ, "PYTHONPATH": ""}, capture_output=True, text=True, timeout=120
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip() == "", f"import {module} also imports {answer.stdout.strip()}"


def test_the_rules_are_about_real_files() -> None:
    """A rule for a file that is no longer there would guard nothing."""
    gone = [room for room in DOORS if not (ROOT / room).exists()]
    assert not gone, f"DOORS has rules for {', '.join(gone)}, which are not there"
