"""Texts in two languages: flat keys in `<language>.json`, filled in with `str.format`.

Where the examples of the run in view are samples and not pairs, the text `<key>@sample` takes the place of `<key>`, if there is one.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any, Final

import streamlit as st

LANGUAGES: Final = {"en": "English", "zh-TW": "繁體中文"}


@cache
def texts(language: str) -> dict[str, str]:
    """Every text of one language."""
    return dict(json.loads(Path(__file__).with_name(f"{language}.json").read_text(encoding="utf-8")))


def preferred() -> str:
    """The language that the visitor's browser asks for; English unless that is Chinese."""
    return "zh-TW" if str(st.context.locale or "").lower().startswith("zh") else "en"


def language() -> str:
    """The language in use: the visitor's choice, else the browser's."""
    chosen = st.session_state.get("lang")
    return chosen if chosen in LANGUAGES else preferred()


def t(key: str, /, **values: Any) -> str:
    """The text in the language in use. An unknown key or a missing value is an error in the page, and raised as one."""
    return template(key).format(**values)


def template(key: str) -> str:
    """The text with its placeholders, for the browser to fill in."""
    known = texts(language())
    return known.get(f"{key}@{st.session_state.get('_examples')}") or known[key]


def speak_of(examples: str) -> None:
    """From now on texts speak of these examples: pair, or sample."""
    st.session_state["_examples"] = examples


def has(key: str) -> bool:
    """There is a text with this key."""
    return key in texts("en")
