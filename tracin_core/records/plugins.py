"""Which plugins a workspace has, without running any of them: their files are parsed, nothing more."""

import ast
import hashlib
from pathlib import Path
from typing import Final

import pandas as pd

from tracin_core.data.plugins import plugin_file
from tracin_core.errors import PluginError

COLUMNS: Final = ["name", "model", "data", "digest", "problem"]


def list_plugins(folder: Path) -> pd.DataFrame:
    """One row per `plugins/*.py`, by name: name, model (it defines `build`), data (it defines `dataset`), digest, problem ('': none).

    A file that is no Python, has no usable name or leads out of the folder is listed with its problem and offers nothing. Files whose
    names start with _ or . are the owner's own.
    """
    paths = sorted(path for path in folder.glob("*.py") if not path.name.startswith(("_", ".")))
    return pd.DataFrame([described(folder, path.stem) for path in paths], columns=COLUMNS)


def described(folder: Path, name: str) -> dict[str, object]:
    """The row of one plugin."""
    functions: set[str] = set()
    digest, problem = "", ""
    try:
        source = plugin_file(folder, name).read_bytes()
        digest = hashlib.sha256(source).hexdigest()
        functions = {node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}
        if not functions & {"build", "dataset"}:
            problem = f"plugins/{name}.py defines neither build(...) nor dataset(...)."
    except (PluginError, OSError) as failure:
        problem = str(failure)
    except SyntaxError as failure:
        problem = f"plugins/{name}.py, line {failure.lineno}: {failure.msg}."
    except (ValueError, RecursionError, MemoryError) as failure:  # what else a parser says of bytes that are no program
        problem = f"plugins/{name}.py is no Python: {failure or type(failure).__name__}."
    return {"name": name, "model": "build" in functions, "data": "dataset" in functions, "digest": digest, "problem": problem}


def plugin_digest(folder: Path, name: str) -> str:
    """SHA-256 of the plugin's file: part of every cache key that its code decides, and of a run's provenance.

    Raises:
        PluginError: there is no such plugin.
    """
    return hashlib.sha256(plugin_file(folder, name).read_bytes()).hexdigest()
