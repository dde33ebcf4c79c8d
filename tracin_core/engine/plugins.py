"""Models and data sets that the operator wrote: `plugins/<name>.py` with `build(...)`, `dataset(...)`, or both (docs/your-model.md).

These files are trusted as this product's own code is, and run in the processes that compute, never in the one that serves pages. What they
raise or return wrongly becomes one sentence that names the file and, where there is one, its line.
"""

import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from torch import nn

from tracin_core.data.plugins import plugin_file
from tracin_core.errors import PluginError
from tracin_core.recipe import PluginModel


def load_plugin(folder: Path, name: str) -> ModuleType:
    """The plugin's module, run anew from its file.

    Raises:
        PluginError: there is no such plugin, it is no Python, or it raises while it is run.
    """
    path = plugin_file(folder, name)
    module = ModuleType(f"tracin_plugin_{name}")
    module.__file__ = str(path)
    # dataclasses and worker processes of a DataLoader look a class's module up here
    sys.modules[module.__name__] = module

    def run() -> None:
        exec(compile(path.read_bytes(), str(path), "exec"), vars(module))

    asked(module, "the file", run)
    return module


def plugin_model(folder: Path, section: PluginModel) -> nn.Module:
    """What `build(**settings)` of the plugin returns, in eval mode.

    Raises:
        PluginError: see `load_plugin`; or `build` is missing, raises, or returns something else than a module with parameters.
    """
    module = load_plugin(folder, section.name)
    model = asked(module, "build(...)", function_of(module, "build"), **section.settings)
    if not isinstance(model, nn.Module):
        raise fault(module, f"build(...) returned {described(model)}, not a torch.nn.Module")
    if not any(True for _ in model.parameters()):
        raise fault(module, "build(...) returned a model without parameters, which has no gradient")
    return model.eval()


def function_of(module: ModuleType, name: str) -> Callable[..., Any]:
    """The plugin's function of this name.

    Raises:
        PluginError: it has none.
    """
    function = getattr(module, name, None)
    if not callable(function):
        raise fault(module, f"it defines no function {name}(...)")
    return cast(Callable[..., Any], function)


def asked(module: ModuleType, what: str, call: Callable[..., Any], *arguments: Any, **settings: Any) -> Any:
    """What the call into the plugin returns.

    Raises:
        PluginError: it raised; the sentence names the last line of the plugin's file on the way there.
    """
    try:
        return call(*arguments, **settings)
    except (Exception, SystemExit) as failure:
        raise fault(module, f"{what} raised {type(failure).__name__}: {first_line(failure)}", line_of(module, failure)) from failure


def fault(module: ModuleType, told: str, line: int | None = None) -> PluginError:
    """The error that names the plugin's file."""
    where = f"plugins/{Path(str(module.__file__)).name}" + (f", line {line}" if line else "")
    return PluginError(f"{where}: {told.rstrip('.')}; correct the plugin, or ask whoever runs this server.")


def line_of(module: ModuleType, failure: BaseException) -> int | None:
    """The last line of the plugin's file that led to the failure; of a text that is no Python, the line that cannot be read."""
    if isinstance(failure, SyntaxError) and failure.filename == module.__file__:
        return failure.lineno
    lines = [line for frame, line in traceback.walk_tb(failure.__traceback__) if frame.f_code.co_filename == module.__file__]
    return lines[-1] if lines else None


def first_line(failure: BaseException) -> str:
    """What it says, in one line."""
    told = failure.msg if isinstance(failure, SyntaxError) else str(failure)
    return (told.strip().splitlines() or ["no message"])[0]


def described(value: Any) -> str:
    """A value's type and, of an array, its shape."""
    shape = getattr(value, "shape", None)
    return type(value).__name__ + (f" of shape {tuple(shape)}" if shape is not None else "")
