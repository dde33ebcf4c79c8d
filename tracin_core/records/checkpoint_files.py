"""Which files of a folder are checkpoints, in the order of their epochs. Nothing is opened."""

import itertools
import re
from pathlib import Path

from tracin_core.errors import CheckpointError, NoCheckpointsError

SUFFIXES = (".pt", ".pth", ".pth.tar", ".ckpt", ".safetensors")
CURVATURES = "curvatures"  # folder under checkpoints/: which kept curvature is of which weights, samples and way of computing
NAME_LIMIT = 32  # of a name within a sentence


def epoch_of(name: str, prefix: str) -> int | None:
    """The number after the prefix, or None if the name has another form. Lightning's names may say the step beside it."""
    match = re.fullmatch(rf"{re.escape(prefix)}(\d+)(?:-step=\d+)?(?:{'|'.join(map(re.escape, SUFFIXES))})", name, re.ASCII)
    return None if match is None else int(match.group(1))


def shown(name: str) -> str:
    """The name on one line, as a sentence has room for it."""
    plain = "".join(character if character.isprintable() else "?" for character in name)
    return plain if len(plain) <= NAME_LIMIT else f"{plain[: NAME_LIMIT // 2 - 2]}...{plain[-NAME_LIMIT // 2 + 2 :]}"


def list_checkpoints(folder: Path, prefix: str) -> list[Path]:
    """The folder's checkpoint files by epoch number: 2, 10, 12, never 10, 12, 2.

    Raises:
        NoCheckpointsError: the folder is missing or has no such file; the message says what is there.
        CheckpointError: two files have the same epoch, which would be counted twice.
    """
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError as failure:
        raise NoCheckpointsError(
            f"The checkpoint folder '{shown(folder.name)}' cannot be read ({failure.strerror}); choose another folder."
        ) from failure
    numbered = sorted((epoch, name) for name in names if (epoch := epoch_of(name, prefix)) is not None)
    if not numbered:
        there = f"'{shown(names[0])}'{', ...' if len(names) > 1 else ''}" if names else "nothing"
        raise NoCheckpointsError(
            f"'{shown(folder.name)}' has no file named '{shown(prefix)}<epoch>.pt' (it holds {there}); choose another folder or prefix."
        )
    for (epoch, name), (following, other) in itertools.pairwise(numbered):
        if epoch == following:
            raise CheckpointError(
                f"'{shown(name)}' and '{shown(other)}' are both epoch {epoch} and would be counted twice; move one of them away."
            )
    return [folder / name for _, name in numbered]
