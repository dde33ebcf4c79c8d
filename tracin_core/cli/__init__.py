"""The same verbs for the shell. Long work runs in the workspace's worker process; this only asks for it and watches.

Exit codes: 0 done, also when nothing was found; 1 the work failed; 2 the command, or a file it names, was wrong and nothing was
started; 130 Ctrl-C.
"""

import sys
import traceback
from collections.abc import Callable
from typing import Annotated

import typer

from tracin_core.cli import all_questions, computing, deciding, evaluating, existing, keeping, people
from tracin_core.cli.asking import spread
from tracin_core.cli.talk import listen, refuse
from tracin_core.errors import InputError, TracInError, WorkspaceError

app = typer.Typer(
    name="tracin",
    help="Exact influence of training examples, computed once and cached.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
VERBS: dict[str, Callable[..., None]] = {
    "demo": computing.demo,
    "compute-influence": computing.compute_influence,
    "test-pair-exclusion": deciding.pair_exclusion,
    "generate-exclusions": deciding.generate_exclusions,
    "train": computing.train,
    "exclude-harmful-pairs": deciding.exclude_harmful_pairs,
    "import": existing.import_files,
    "report": keeping.report,
    "serve": people.serve,
    "inspect": computing.inspect,
    "export-zarr": keeping.export_zarr,
    "verify": keeping.verify,
    "gc": keeping.gc,
    "rebuild-catalogue": keeping.rebuild_catalogue,
    "doctor": keeping.doctor,
}
for name, verb in VERBS.items():
    app.command(name)(spread(verb))
app.add_typer(people.access)
evaluating.evaluate.command("quick")(all_questions.evaluate_quick)
evaluating.evaluate.command("full")(all_questions.evaluate_full)
app.add_typer(evaluating.evaluate)


@app.callback()
def anywhere(
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error comes from; may stand anywhere.")] = False,
) -> None:
    """Exact influence of training examples, computed once and cached."""


def main() -> None:
    """Runs the command; a failure is one sentence on stderr, and with --debug its traceback before it."""
    words = sys.argv[1:]
    debug = "--debug" in words
    listen(machine="--json" in words)
    try:
        code = app([word for word in words if word != "--debug"] or ["--help"], standalone_mode=False)
    except Exception as failure:
        if debug:
            traceback.print_exc()
        code = refused(failure)
    finally:
        listen(machine=False)
    sys.exit(code)


def refused(failure: Exception) -> int:
    """The exit code of the failure, once its sentence is told."""
    if isinstance(failure, typer.TyperException):
        return refuse(f"{failure.format_message().rstrip('.')} (add --help to see what the command takes).", 2)
    if isinstance(failure, TracInError):
        return refuse(str(failure), 2 if isinstance(failure, InputError | WorkspaceError) else 1)
    if isinstance(failure, OSError):
        return refuse(f"{failure}; check that the path exists and that you may write there.", 1)
    told = f"Something unforeseen happened ({type(failure).__name__}: {failure})"
    return refuse(f"{told}; add --debug to see where, and report what it shows.", 1)
