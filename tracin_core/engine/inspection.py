"""What checkpoint files hold, told without a workspace; nothing is kept.

    python -m tracin_core.engine.inspection     a JSON request on stdin (`main`), one JSON line per file on stdout, as it comes

A process of its own, so that the shell need not wait for torch to refuse a wrong command. The files themselves are read in the limited
child of `checkpoints.py`, as for a run.
"""

import json
import sys
from contextlib import closing
from pathlib import Path
from typing import Any, get_args

from torch import nn

from tracin_core.engine.checkpoints import Checkpoint, and_, inspect_files
from tracin_core.engine.intake import shown_name
from tracin_core.engine.models import Layout, Ranker, build_model
from tracin_core.errors import InputError, TracInError
from tracin_core.recipe import MODEL_FORMS


def main() -> None:
    """Request: `paths`, `model` (a recipe's section, or null), `plugins` (a folder). Answers: `accepted` and `line`; or `failed`."""
    request = json.load(sys.stdin)
    try:
        models = models_asked(request["model"], Path(request["plugins"]))
        with closing(inspect_files([Path(path) for path in request["paths"]], models)) as outcomes:
            for outcome, fits in outcomes:
                accepted = isinstance(outcome, Checkpoint)
                line = told(outcome, layers_of(models[fits[0]]), fits) if isinstance(outcome, Checkpoint) else str(outcome)
                print(json.dumps({"accepted": accepted, "line": line}), flush=True)
    except TracInError as failure:
        print(json.dumps({"failed": str(failure), "by_input": isinstance(failure, InputError)}), flush=True)


def models_asked(section: dict[str, Any] | None, plugins: Path) -> dict[str, nn.Module]:
    """The model of this section of a recipe; without one, every published layout of the ranker, by name."""
    if section is not None:
        return {"": build_model(MODEL_FORMS.validate_python(section), plugins)}
    return {layout: Ranker(layout) for layout in get_args(Layout)}


def told(checkpoint: Checkpoint, layers: int, fits: list[str]) -> str:
    """One line: the file, its epoch, its learning rate, its size, its identity, and the layouts that it may be of."""
    rate = "no learning rate recorded" if checkpoint.learning_rate is None else f"learning rate {checkpoint.learning_rate:g}"
    size = f"{checkpoint.parameters:,} parameters in {layers} layers, {checkpoint.stored_as}"
    line = f"'{shown_name(checkpoint.source)}': epoch {checkpoint.epoch}, {rate}, {size}, digest {checkpoint.digest[:12]}"
    if fits == [""]:
        return line
    if len(fits) == 1:
        return f"{line}, fits the layout {and_(fits)}"
    return f"{line}, fits the layouts {and_(fits)}, and no file tells their strides: choose the one it was trained with"


def layers_of(model: nn.Module) -> int:
    """How many parts of the model have parameters of their own."""
    return len({name.rpartition(".")[0] for name, _ in model.named_parameters()})


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)  # the shell that asked was told the same
