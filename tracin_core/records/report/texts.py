"""The report's texts in two languages: flat keys in `<language>.json`, filled in with `str.format`.

Where examples are samples and not pairs, `<key>@sample` takes the place of `<key>`, if there is one; of scores that were imported, of which
neither gradients nor checkpoints are known, `<key>@imported`.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from tracin_core.errors import ViewError

LANGUAGES: Final = {"en": "English", "zh-TW": "繁體中文"}


@cache
def catalogue(language: str) -> dict[str, str]:
    """Every text of one language.

    Raises:
        ViewError: there is none in this language.
    """
    if language not in LANGUAGES:
        raise ViewError(f"There is no report in '{language}'; choose from {', '.join(LANGUAGES)}.")
    return dict(json.loads(Path(__file__).with_name(f"{language}.json").read_text(encoding="utf-8")))


@dataclass(frozen=True)
class Words:
    """`words("key", n=3)`: the text in one language, about pairs or samples, computed here or imported."""

    language: str
    noun: str
    imported: bool = False

    def __call__(self, key: str, /, **values: Any) -> str:
        known = catalogue(self.language)
        forms = (*(["imported"] if self.imported else []), self.noun)
        return next((known[f"{key}@{form}"] for form in forms if f"{key}@{form}" in known), known[key]).format(**values)

    def has(self, key: str) -> bool:
        """There is a text with this key."""
        return key in catalogue(self.language)
