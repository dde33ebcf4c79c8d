"""What docs/your-data.md shows runs as it stands: files are written, read, labelled and split."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tracin_core.data.readers import READERS, reader_for
from tracin_core.data.samples import SIDES, split_samples, with_labels
from tracin_core.recipe import Recipe

TEXT = (Path(__file__).parents[1] / "docs" / "your-data.md").read_text(encoding="utf-8")
SHAPES = {"recordings": (120, 1, 1025, 47), "arrays": (60, 1, 8, 8), "images": (40, 1, 12, 12), "table": (50, 2)}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def test_every_kind_of_data_is_read_as_the_document_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of the document in their order; each recipe finds the samples of the example above it, on all three sides."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for number, block in enumerate(blocks("python"), start=1):
        exec(compile(block, f"docs/your-data.md, block {number}", "exec"), names)
    recipes = [Recipe.from_dict({**tomllib.loads(block), "checkpoints": {"folder": "any"}}) for block in blocks("toml")]
    assert [recipe.data.kind for recipe in recipes] == list(READERS)
    for recipe in recipes:
        reader = reader_for(recipe.data)
        samples = split_samples(with_labels(reader.list(), recipe.task), recipe.split)
        assert set(samples["split"]) == set(SIDES.values())
        inputs = reader.read(samples)
        assert inputs.shape == SHAPES[recipe.data.kind]
        reader.preview(samples.iloc[0], inputs[0], tmp_path / "previews" / recipe.data.kind)
        assert reader.left_out() == []
    seen = {path.name for path in (tmp_path / "previews").iterdir()}
    assert seen == {"recordings.png", "recordings.wav", "arrays.png", "images.png", "table.txt"}


def test_the_document_knows_every_rule_and_name() -> None:
    """No kind of data, split rule or name of the product's own is missing from it."""
    from tracin_core.data.checks import RESERVED
    from tracin_core.data.samples import RULES

    for name in (*READERS, *RULES, *RESERVED, *SIDES):
        assert f"`{name}`" in TEXT, name
