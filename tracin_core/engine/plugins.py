"""Models and data sets that the operator wrote: `plugins/<name>.py` with `build(...)`, `dataset(...)`, or both (docs/your-model.md).

These files are trusted as this product's own code is, and run in the processes that compute, never in the one that serves pages. What they
raise or return wrongly becomes one sentence that names the file and, where there is one, its line.
"""

import hashlib
import io
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import pandas as pd
import soundfile
import torch
from PIL import Image
from torch import Tensor, nn

from tracin_core.data.arrays import model_inputs
from tracin_core.data.checks import (
    Inputs,
    LeftOut,
    checked_ids,
    refuse_infinite,
    refuse_reserved,
    require_room,
    row_names,
    rows_of,
    shown,
    sorted_by_id,
)
from tracin_core.data.files import write_whole
from tracin_core.data.plugins import plugin_file
from tracin_core.data.previews import array_preview, lines_preview, write_png
from tracin_core.data.recordings import PREVIEW_SECONDS
from tracin_core.data.seals import sealed_wav
from tracin_core.errors import DataError, PluginError
from tracin_core.recipe import PluginData, PluginModel


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


class Item(NamedTuple):
    """One sample of a plugin's data set: what the model takes, what is wanted, and what else is known of it."""

    values: npt.NDArray[Any]
    target: int | float | str
    metadata: dict[str, int | float | str]


class PluginReader:
    """Samples are the items of `dataset(**settings)` of a plugin: (input, target) or (input, target, metadata).

    Floats become float32, bytes (uint8) are divided by 255, other whole numbers, which are tokens, int64. An attribute or method `ids` of
    the data set names its items; else they are numbered. It must give the same items each time it is asked.

    Raises:
        PluginError: the plugin is missing, fails, or its items are not as described.
    """

    def __init__(self, folder: Path, section: PluginData) -> None:
        self._module = load_plugin(folder, section.name)
        self.preprocessing = f"plugin-{hashlib.sha256(Path(str(self._module.__file__)).read_bytes()).hexdigest()[:16]}-v1"
        self._dataset = asked(self._module, "dataset(...)", function_of(self._module, "dataset"), **section.settings)
        if not hasattr(self._dataset, "__len__") or not hasattr(self._dataset, "__getitem__"):
            raise fault(self._module, f"dataset(...) returned {described(self._dataset)}, which has no len() or no [i]")
        self._count: int = asked(self._module, "len() of the data set", lambda: len(self._dataset))
        if not self._count:
            raise fault(self._module, "the data set is empty")

    def list(self) -> pd.DataFrame:
        """Ids, targets and metadata; every item is read, and none is kept."""
        items = [self._item(row) for row in self._rows()]
        targets = pd.Series([item.target for item in items])
        columns = self._metadata([item.metadata for item in items])
        samples = pd.DataFrame({"id": pd.Series(self._ids(), dtype="str"), "target": targets, "path": "", **columns})
        return samples if self._named_ids() is None else sorted_by_id(samples)

    def read(self, samples: pd.DataFrame, progress: Callable[[int], None] | None = None) -> Inputs:
        """What the model takes, in the order of the samples.

        Raises:
            PluginError: an item has another shape or type than the first, or another target than when it was listed.
            UnreadableSampleError: an item holds a value that is no finite number.
        """
        inputs: npt.NDArray[Any] | None = None
        for place, row in enumerate(rows_of(samples, self._ids())):
            values, target, _ = self._item(int(row))
            if inputs is None:
                require_room(len(samples), values.shape)
                inputs = np.empty((len(samples), *values.shape), dtype=values.dtype)
            if (values.shape, values.dtype) != (inputs.shape[1:], inputs.dtype):
                raise fault(
                    self._module,
                    f"item {row} is {values.dtype} of shape {values.shape}, but the first is {inputs.dtype} of shape {inputs.shape[1:]}",
                )
            listed = samples["target"].iloc[place]
            if target != listed:
                raise fault(self._module, f"item {row} had the target {shown(listed)} before and has {shown(target)} now")
            inputs[place] = values
            if progress is not None:
                progress(place + 1)
        if inputs is None:
            raise DataError("There is no sample to read; list the samples of the plugin first.")
        refuse_infinite(inputs, samples)
        return inputs

    def preview(self, sample: pd.Series, values: npt.NDArray[Any], stem: Path) -> None:
        """What the plugin's `preview(input)` returns, a picture, text, or sound as (wave, rate); without it a picture of the values."""
        if not hasattr(self._module, "preview"):
            array_preview(values, stem)
            return
        shown_as = asked(self._module, "preview(...)", function_of(self._module, "preview"), torch.from_numpy(values.copy()))
        if isinstance(shown_as, Image.Image):
            write_png(shown_as if shown_as.mode in ("L", "RGB") else shown_as.convert("RGB"), stem.with_suffix(".png"))
        elif isinstance(shown_as, str):
            lines_preview(shown_as.splitlines(), stem)
        elif isinstance(shown_as, tuple) and len(shown_as) == 2:
            asked(self._module, "the sound of preview(...)", write_sound, *shown_as, stem.with_suffix(".wav"))
        else:
            raise fault(
                self._module, f"preview(...) returned {described(shown_as)}, neither a PIL image, nor text, nor (wave, rate)"
            )

    def left_out(self) -> Sequence[LeftOut]:
        """Nothing: what is no item of the data set is the plugin's own affair."""
        return []

    def _rows(self) -> range:
        return range(self._count)

    def _item(self, row: int) -> Item:
        item = asked(self._module, f"item {row} of the data set", lambda: self._dataset[row])
        if not isinstance(item, (tuple, list)) or len(item) not in (2, 3):
            raise fault(self._module, f"item {row} is {described(item)}, not (input, target) or (input, target, metadata)")
        metadata = item[2] if len(item) == 3 else {}
        if not isinstance(metadata, dict):
            raise fault(self._module, f"the metadata of item {row} are {described(metadata)}, not a dictionary")
        where = f"the target of item {row}"
        told = {str(name): self._plain(value, f"'{shown(name)}' of item {row}") for name, value in metadata.items()}
        return Item(self._values(item[0], row), self._plain(item[1], where), told)

    def _values(self, given: Any, row: int) -> npt.NDArray[Any]:
        if not isinstance(given, (Tensor, np.ndarray)):
            raise fault(self._module, f"the input of item {row} is {described(given)}, not one Tensor")
        if isinstance(given, Tensor):
            given = given.detach().cpu()
            given = (given.float() if given.is_floating_point() else given).numpy()
        try:
            return model_inputs(given, f"item {row}")
        except DataError as failure:
            raise fault(self._module, str(failure)) from failure

    def _plain(self, value: Any, what: str) -> int | float | str:
        """A number or text; of a tensor or array of one value, that value."""
        if isinstance(value, (Tensor, np.ndarray, np.generic)) and np.prod(value.shape, dtype=int) == 1:
            value = value.item()
        if not isinstance(value, (int, float, str)):
            raise fault(self._module, f"{what} is {described(value)}, neither one number nor text")
        return int(value) if isinstance(value, bool) else value

    def _metadata(self, told: Sequence[dict[str, int | float | str]]) -> dict[str, pd.Series]:
        """One column per name.

        Raises:
            PluginError: an item has other names than the first.
        """
        names = tuple(told[0])
        for row, one in enumerate(told):
            if set(one) != set(names):
                differing = ", ".join(sorted(set(one) ^ set(names)))
                raise fault(self._module, f"item {row} and item 0 do not both have the metadata {shown(differing)}")
        refuse_reserved(names, f"plugins/{Path(str(self._module.__file__)).name}")
        return {name: pd.Series([one[name] for one in told]) for name in names}

    def _named_ids(self) -> Sequence[str] | None:
        named = getattr(self._dataset, "ids", None)
        if named is None:
            return None
        listed = asked(self._module, "ids of the data set", lambda: [str(name) for name in (named() if callable(named) else named)])
        if len(listed) != self._count:
            raise fault(self._module, f"the data set has {self._count} items, but {len(listed)} ids")
        return checked_ids(listed, f"plugins/{Path(str(self._module.__file__)).name}")

    def _ids(self) -> Sequence[str]:
        """In the order of the items."""
        return self._named_ids() or row_names(self._count)


def write_sound(wave: Any, rate: int, path: Path) -> None:
    """The file holds the first seconds of the wave, one channel of values in -1..1, in 16 bits."""
    values = np.asarray(wave, dtype=np.float32).squeeze()
    if values.ndim != 1 or not np.isfinite(values).all():
        raise ValueError(f"the wave has shape {values.shape}; give one channel of finite values in -1..1")
    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(values[: PREVIEW_SECONDS * int(rate)], -1, 1), int(rate), format="WAV", subtype="PCM_16")
    write_whole(path, [sealed_wav(buffer.getvalue())])


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
