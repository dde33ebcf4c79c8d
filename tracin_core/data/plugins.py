"""Where a plugin's file is: `plugins/<name>.py` in the workspace, and nowhere else. Nothing here runs it."""

import re
from pathlib import Path
from typing import Final

from tracin_core.errors import PluginError

NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")  # as `PluginName` of the recipe


def plugin_file(folder: Path, name: str) -> Path:
    """The file of this plugin, links followed.

    Raises:
        PluginError: the name is not one, there is no such file, or a link leads out of the folder.
    """
    if not NAME.fullmatch(name):
        raise PluginError(f"{name!r} does not name a plugin; a name has letters, digits and _ only, and starts with a letter.")
    path = (folder / f"{name}.py").resolve()
    if not path.is_file():
        raise PluginError(f"There is no plugin '{name}': plugins/{name}.py is not in this workspace; ask whoever runs this server.")
    if not path.is_relative_to(folder.resolve()):
        raise PluginError(f"plugins/{name}.py is a link that leads out of the folder of plugins; copy the file there instead.")
    return path
