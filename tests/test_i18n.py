"""Both languages say the same things, and pages say nothing in words of their own."""

import ast
import re
from pathlib import Path
from string import Formatter

import pytest

from pages.shared.i18n import LANGUAGES, texts
from tracin_core import errors
from tracin_core.worker.serving import HANDLERS

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "pages").rglob("*.py"))
CJK = re.compile(r"[\u3000-\u303f\u4e00-\u9fff\uff00-\uffef]")
TEXT_FUNCTIONS = {"t", "template"}


def placeholders(text: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(text) if name is not None}


def calls(path: Path) -> list[ast.Call]:
    return [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]


def keys_used() -> set[str]:
    """Text keys that pages name: `t("key")`, and `frame.page("key")`."""
    found = set()
    for path in PAGES:
        for call in calls(path):
            name = ast.unparse(call.func)
            if (name in TEXT_FUNCTIONS or name == "frame.page") and call.args and isinstance(call.args[0], ast.Constant):
                found.add(call.args[0].value)
    return found


@pytest.mark.parametrize("language", LANGUAGES)
def test_languages_have_the_same_keys(language: str) -> None:
    assert set(texts(language)) == set(texts("en"))


@pytest.mark.parametrize("key", sorted(texts("en")))
def test_a_text_takes_the_same_values_in_both_languages(key: str) -> None:
    assert {language: placeholders(texts(language)[key]) for language in LANGUAGES} == dict.fromkeys(
        LANGUAGES, placeholders(texts("en")[key])
    )


@pytest.mark.parametrize("key", sorted(texts("en")))
def test_a_text_is_not_empty_and_chinese_is_chinese(key: str) -> None:
    assert all(texts(language)[key].strip() for language in LANGUAGES)
    words = re.sub(r"{[^}]*}", "", texts("zh-TW")[key])
    assert CJK.search(words) or not re.search(r"[a-z]{4}", words), f"{key} is not translated: {words}"


@pytest.mark.parametrize("key", sorted(key for key in texts("en") if "@" in key))
def test_a_form_for_samples_says_no_more_than_the_text_it_stands_for(key: str) -> None:
    base, _, examples = key.partition("@")
    assert examples == "sample"
    assert placeholders(texts("en")[key]) <= placeholders(texts("en")[base])


def test_pages_use_texts_that_exist() -> None:
    assert keys_used() - set(texts("en")) == set()


def test_each_kind_of_error_has_words() -> None:
    """Every error finds a text on its way up the tree, the branches their own."""
    for branch in (errors.TracInError, *errors.TracInError.__subclasses__()):
        assert {f"error.{branch.__name__}", f"error.{branch.__name__}.next"} <= set(texts("en"))


def test_each_job_and_step_and_health_check_has_words() -> None:
    """Whoever looks at Compute or Overview would otherwise see nothing but an incident."""
    known = set(texts("en"))
    assert {f"job.kind.{kind}" for kind in HANDLERS} <= known
    assert {f"job.step.{step}" for _, weights in HANDLERS.values() for step in weights} <= known
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tracin_core").rglob("*.py"))
    checks = set(re.findall(r'"name": "(\w+)", "passed"', sources))
    assert {"weights", "exclusions"} <= checks
    assert {name for name in checks if not {f"health.{name}", f"health.{name}@sample"} & known} == set()


@pytest.mark.parametrize("path", [path for path in PAGES if path.parent.name != "i18n"], ids=lambda path: path.name)
def test_a_page_holds_no_chinese_of_its_own(path: Path) -> None:
    strings = [node.value for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Constant)]
    assert not [text for text in strings if isinstance(text, str) and CJK.search(text)]
