"""What the documents show runs as it stands."""

import re
from pathlib import Path
from typing import Any

import lab
import pytest
from lab import stop_worker

DOCS = Path(__file__).parents[1] / "docs"


def test_every_question_in_the_document_is_answered(shelf: lab.Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of docs/questions.md, in their order, on a real run of three epochs."""
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "questions.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 7
    place = shelf.studio(tmp_path / "workspace", epochs=3).place
    try:
        monkeypatch.chdir(tmp_path)
        names: dict[str, Any] = {}
        for number, block in enumerate(blocks, start=1):
            exec(compile(block, f"docs/questions.md, block {number}", "exec"), names)
        assert len(names["chosen"]) > 0
    finally:
        stop_worker(place)
