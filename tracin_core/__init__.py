"""TracIn Studio: exact influence of training examples, cached as tangent kernels.

The public names load lazily, so that importing the package does not import torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tracin_core.engine.kernel import tangent_kernel, tangent_norms
    from tracin_core.engine.recording import RecordTraining
    from tracin_core.notebook import TracIn
    from tracin_core.recipe import Recipe
    from tracin_core.records.workspace import open_workspace

__version__ = "0.1.0"
__all__ = ["Recipe", "RecordTraining", "TracIn", "open_workspace", "tangent_kernel", "tangent_norms"]

_HOMES = {
    "Recipe": "tracin_core.recipe",
    "RecordTraining": "tracin_core.engine.recording",
    "TracIn": "tracin_core.notebook",
    "open_workspace": "tracin_core.records.workspace",
    "tangent_kernel": "tracin_core.engine.kernel",
    "tangent_norms": "tracin_core.engine.kernel",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tracin_core' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
