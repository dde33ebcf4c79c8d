"""The documents and the program say the same: nothing is missing from a document, and nothing in it does not exist."""

import ast
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
from pydantic.fields import FieldInfo

from tracin_core.recipe import (
    CheckpointSection,
    DataSection,
    EngineSection,
    ModelSection,
    Recipe,
    Section,
    SplitSection,
    TaskSection,
)

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def text_of(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def sections_of(text: str, level: int) -> dict[str, str]:
    """What stands under each heading of this level, up to the next of this or a higher one."""
    parts = re.split(rf"^(#{{1,{level}}}) (.+)$", text, flags=re.MULTILINE)
    marks, titles, bodies = parts[1::3], parts[2::3], parts[3::3]
    return {title: body for mark, title, body in zip(marks, titles, bodies, strict=True) if len(mark) == level}


def table_of(text: str) -> dict[str, list[str]]:
    """The rows of the tables in the text, by the first cell's `code`: the other cells."""
    rows = [re.split(r"(?<!\\)\|", line.strip())[1:-1] for line in text.splitlines() if line.startswith("| `")]
    named = [cells[0].strip().strip("`") for cells in rows]
    assert len(set(named)) == len(named), f"twice: {sorted({name for name in named if named.count(name) > 1})}"
    return {name: [cell.strip() for cell in cells[1:]] for name, cells in zip(named, rows, strict=True)}


def text_below(*places: str) -> dict[Path, str]:
    """The text of each file of the repository that these patterns find."""
    found = {path for place in places for path in ROOT.glob(place) if path.is_file()}
    return {path: path.read_text(encoding="utf-8") for path in sorted(found)}


# ---- settings.md ----------------------------------------------------------------------------------------------------------------


def forms() -> Iterator[tuple[str, type[Section]]]:
    """Every section of a recipe, by the heading that it has in the document."""
    yield "Top", Recipe
    for name, section, usual in (
        ("model", ModelSection, "ranker"),
        ("data", DataSection, "recordings"),
        ("task", TaskSection, "ranking"),
    ):
        for form in get_args(get_args(section)[0]):
            kind = form.__metadata__[0].tag
            yield f'[{name}] kind = "{kind}"' + " (usual)" * (kind == usual), get_args(form)[0]
    yield from (("[split]", SplitSection), ("[checkpoints]", CheckpointSection), ("[engine]", EngineSection))


def default_told(field: FieldInfo) -> str | None:
    """The cell of a field's default; None where words describe it."""
    if field.is_required():
        return "*needed*"
    if field.default_factory is not None or isinstance(field.default, Section):
        return None
    return "*none*" if field.default is None else f"`{json.dumps(field.default)}`"


def test_every_field_of_a_recipe_is_told_with_its_default() -> None:
    told = {title: table_of(body) for title, body in sections_of(text_of("settings.md"), 3).items()}
    known = dict(forms())
    assert set(told) == set(known)
    for title, form in known.items():
        fields = {name: field for name, field in form.model_fields.items() if name != "kind"}
        assert set(told[title]) == set(fields), title
        for name, field in fields.items():
            cell = default_told(field)
            assert cell is None or told[title][name][0] == cell, f"{title} {name}: {told[title][name][0]} should be {cell}"


def test_every_environment_variable_is_told_and_no_other() -> None:
    def named(*places: str) -> set[str]:
        return {name for text in text_below(*places).values() for name in re.findall(r"\bTRACIN_[A-Z_]*[A-Z]\b", text)}

    read = named("tracin_core/**/*.py", "pages/**/*.py", "pages/**/*.json", "app.py", "scripts/*", "Makefile")
    in_tests = named("tests/test_[!d]*.py")
    told = set(table_of(sections_of(text_of("settings.md"), 2)["Environment variables"]))
    assert read - told == set()
    assert told - read - in_tests == set()
    assert named("README.md", "SECURITY.md", "docs/**/*.md", "benchmarks/*.md") - told == set()


def test_defaults_of_environment_variables_are_those_of_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    from tracin_core.cluster import LEASE_SECONDS, PATIENCE_SECONDS
    from tracin_core.records.progress import RESERVE_BYTES
    from tracin_core.records.uploads import limits
    from tracin_core.worker.serving import IDLE_SECONDS

    table = table_of(sections_of(text_of("settings.md"), 2)["Environment variables"])
    told = {name: cells[0].strip("`") for name, cells in table.items()}
    numbers = {
        "CLUSTER_LEASE": LEASE_SECONDS,
        "CLUSTER_PATIENCE": PATIENCE_SECONDS,
        "DISK_RESERVE": RESERVE_BYTES,
        "WORKER_IDLE": IDLE_SECONDS,
    }
    assert {name: float(told[f"TRACIN_{name}"]) for name in numbers} == numbers
    for name in ("LIMIT", "TOTAL", "FILES"):
        monkeypatch.delenv(f"TRACIN_UPLOAD_{name}", raising=False)
    usual = limits()
    for name in ("LIMIT", "TOTAL", "FILES"):
        monkeypatch.setenv(f"TRACIN_UPLOAD_{name}", told[f"TRACIN_UPLOAD_{name}"])
    assert limits() == usual


def leaves(settings: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def test_every_setting_of_the_web_server_is_told_with_its_value() -> None:
    config = dict(leaves(tomllib.loads((ROOT / ".streamlit" / "config.toml").read_text(encoding="utf-8"))))
    told = table_of(sections_of(text_of("settings.md"), 2)["The web server"])
    assert set(told) == set(config)
    for name, cells in told.items():
        assert cells[0] in (f"`{json.dumps(config[name])}`", "see the file"), name


# ---- errors.md ------------------------------------------------------------------------------------------------------------------


def error_classes() -> dict[str, str]:
    """Every class of the error tree, wherever it is defined, with the class that it is derived from."""
    found = {"TracInError": "Exception"}
    derived = [
        (node.name, base.id)
        for text in text_below("tracin_core/**/*.py", "pages/**/*.py", "app.py").values()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ClassDef)
        for base in node.bases
        if isinstance(base, ast.Name)
    ]
    while more := {name: base for name, base in derived if base in found and name not in found}:
        found |= more
    return found


def branch_of(name: str, tree: dict[str, str]) -> str:
    return name if tree[name] == "TracInError" else branch_of(tree[name], tree)


def test_every_error_class_is_told_under_its_branch_and_no_other() -> None:
    tree = error_classes()
    told = {title: set(table_of(body)) for title, body in sections_of(text_of("errors.md"), 2).items()}
    known: dict[str, set[str]] = {}
    for name in tree.keys() - {"TracInError"}:
        known.setdefault(branch_of(name, tree), set()).add(name)
    assert told == known
    named = set(re.findall(r"`(\w+Error)`", text_of("errors.md")))
    assert named == set(tree)


def test_every_error_class_has_its_place_in_the_tree_that_is_drawn() -> None:
    from tracin_core import errors

    drawn = re.findall(r"^[ │├└─]*── (\w+Error)|^    (TracInError)$", errors.__doc__ or "", re.MULTILINE)
    defined = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert sorted("".join(pair) for pair in drawn) == sorted(defined)


def test_exit_codes_of_errors_are_those_of_the_shell(capsys: pytest.CaptureFixture[str]) -> None:
    from tracin_core import errors
    from tracin_core.cli import refused

    told = {name: cells[-1] for name, cells in table_of(text_of("errors.md").partition("## InputError")[0]).items()}
    assert set(told) == {kind.__name__ for kind in errors.TracInError.__subclasses__()}
    for name, kind in vars(errors).items():
        if isinstance(kind, type) and kind is not errors.TracInError:
            branch = next(base.__name__ for base in kind.__mro__ if errors.TracInError in base.__bases__)
            usual, *further = re.findall(r"\d", told[branch])
            assert refused(kind("It is wrong.")) == int(further[0] if f"`{name}`" in told[branch] else usual), name
    assert "It is wrong." in capsys.readouterr().err


def run_blocks(name: str, names: dict[str, Any] | None = None) -> dict[str, Any]:
    """The document's Python blocks, run in their order in one namespace, which is returned."""
    names = {} if names is None else names
    blocks = re.findall(r"```python\n(.*?)```", text_of(name), re.DOTALL)
    assert blocks
    for number, block in enumerate(blocks, start=1):
        exec(compile(block, f"docs/{name}, block {number}", "exec"), names)
    return names


def test_the_example_of_a_refusal_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    run_blocks("errors.md")
    assert "data.material" in capsys.readouterr().out


# ---- architecture.md ------------------------------------------------------------------------------------------------------------


def test_every_room_and_every_file_of_it_is_on_the_page_and_no_other() -> None:
    from test_architecture import DOORS

    sections = sections_of(text_of("architecture.md"), 2)
    assert set(table_of(sections["Rooms"])) == set(DOORS)
    told = {room: set(re.findall(r"`(\w+)`", cells[0])) for room, cells in table_of(sections["Files of each room"]).items()}
    assert set(told) == {room for room in DOORS if not room.endswith(".py")}
    for room, names in told.items():
        there = {path.stem for path in (ROOT / room).glob("*.py")} | {
            path.parent.name for path in (ROOT / room).glob("*/__init__.py")
        }
        rooms_of_their_own = {Path(other).name for other in told if other.startswith(f"{room}/")}
        assert names == there - rooms_of_their_own - {"__init__"}, room


# ---- extending.md ---------------------------------------------------------------------------------------------------------------


def defined_in(path: Path) -> set[str]:
    """The names that a module defines for itself."""
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


def test_every_place_to_add_something_exists() -> None:
    text = text_of("extending.md")
    assert list(sections_of(text, 2)) == [
        "A loss of pairs",
        "A loss of samples",
        "A layer rule",
        "A reader",
        "A page",
        "An executor",
    ]
    places = [[cell.strip().strip("`") for cell in line.split("|")[1:3]] for line in text.splitlines() if line.startswith("| `")]
    assert len(places) > 40
    for file, name in places:
        assert (ROOT / file).is_file(), file
        assert not name or name in defined_in(ROOT / file), f"{file} has no {name}"
    assert "ENGINE_VERSION" in defined_in(ROOT / "tracin_core" / "engine" / "__init__.py")


# ---- all of them ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", sorted([*DOCS.glob("*.md"), ROOT / "README.md", ROOT / "SECURITY.md"]), ids=lambda page: page.name)
def test_every_link_and_every_path_in_a_document_leads_somewhere(page: Path) -> None:
    """Links between documents, with the heading that they jump to, and files of the source that are named."""
    text = page.read_text(encoding="utf-8")
    for target, _, anchor in (link.partition("#") for link in re.findall(r"\]\(([^)\s]+)\)", text)):
        if target.startswith(("http:", "https:")):
            continue
        place = (page.parent / target) if target else page
        assert place.exists(), f"{page.name} links to {target}"
        headings = re.findall(r"^#+ (.+)$", place.read_text(encoding="utf-8"), re.MULTILINE) if anchor else []
        assert not anchor or anchor in [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in headings], f"#{anchor}"
    named = re.findall(r"`((?:tracin_core|pages|tests|scripts|docs|benchmarks)/[\w./-]+)`", text)
    assert [name for name in named if not (ROOT / name).exists()] == []


def commands_of_the_shell() -> Iterator[tuple[str, Any]]:
    """Every command, also of a group, by the words that call it."""

    def below(command: Any, words: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
        for name, inner in getattr(command, "commands", {}).items():
            yield from below(inner, (*words, name))
        if words and not getattr(command, "commands", {}):
            yield " ".join(words), command

    from tracin_core.cli import app

    yield from below(typer.main.get_command(app), ())


def test_every_command_and_option_of_the_shell_is_in_the_manual() -> None:
    """In the section of the command, or in one that it refers to, or said of all commands at the top."""
    text = text_of("command-line.md")
    sections, top = sections_of(text, 2), text.partition("\n## ")[0]
    commands = dict(commands_of_the_shell())
    assert {name.split()[0] for name in commands} == set(sections)
    for name, command in commands.items():
        section = sections[name.split()[0]]
        told = top + section + "".join(sections[other] for other in re.findall(r"\(#([a-z-]+)\)", section))
        assert f"tracin_core {name}" in section, name
        options = [option for parameter in command.params for option in parameter.opts if option.startswith("--")]
        missing = [option for option in options if not re.search(rf"(?<![\w-]){option}(?![\w-])", told)]
        assert missing == [], f"{name}: {missing}"


def test_the_readme_leads_to_every_document() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [page.name for page in sorted(DOCS.glob("*.md")) if f"(docs/{page.name})" not in text] == []
