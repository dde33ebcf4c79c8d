"""A directory in which commands are typed, as a user does: real processes, and the workspace that they make there."""

import io
import json
import os
import subprocess
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tracin_core.cli import main
from tracin_core.records.workspace import Workspace, open_workspace

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 120  # seconds
ENVIRONMENT = {**{k: v for k, v in os.environ.items() if not k.startswith("TRACIN_")}, "PYTHONPATH": str(ROOT)}


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "tracin_core", *words]


@dataclass(frozen=True)
class Shell:
    """A directory in which commands are typed; its workspace is the default one."""

    home: Path

    def __call__(self, *words: str, patience: float = PATIENCE) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command(*words), cwd=self.home, env=ENVIRONMENT, capture_output=True, text=True, timeout=patience)

    def here(self, *words: str) -> subprocess.CompletedProcess[str]:
        """The same command, without the seconds that a process takes to start."""
        told, warned, kept = io.StringIO(), io.StringIO(), {k: v for k, v in os.environ.items() if not k.startswith("TRACIN_")}
        with (
            chdir(self.home),
            redirect_stdout(told),
            redirect_stderr(warned),
            patch.object(sys, "argv", ["tracin_core", *words]),
            patch.dict(os.environ, kept, clear=True),
        ):
            try:
                main()
            except SystemExit as end:
                code = int(end.code or 0)
        return subprocess.CompletedProcess(words, code, told.getvalue(), warned.getvalue())

    def json(self, *words: str, process: bool = False) -> dict[str, Any]:
        """What a command that succeeds tells a machine: one document, all of stdout, and nothing on stderr."""
        answer = (self if process else self.here)(*words, "--json")
        assert (answer.returncode, answer.stderr) == (0, ""), answer.stderr
        document: dict[str, Any] = json.loads(answer.stdout)
        return document

    @property
    def place(self) -> Workspace:
        return open_workspace(self.home / "workspace")
