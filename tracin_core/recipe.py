"""What is analysed: the one validated model of `analysis.toml`.

A recipe names a model, a data set, a split, a task and a checkpoint folder. Settings that only change how scores are read
(margin, checkpoint weights, measure) are defaults here and can all be changed in a view without a new computation.
"""

import hashlib
import json
import os
import tomllib
from pathlib import Path
from typing import Any, Final, Literal, Self

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from tracin_core.errors import RecipeError

SIMULATED_MARK: Final = "SIMULATED.txt"  # lies beside recordings that were not measured
LossName = Literal["margin", "ghm", "ghm_legacy", "logistic", "squared_hinge"]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSection(Section):
    """The network that the checkpoints belong to."""

    kind: Literal["ranker"] = "ranker"
    layout: Literal["small", "large"] = Field(default="small", description="small: 5,733 parameters; large: 422,337 parameters")


class DataSection(Section):
    """Recordings in the layout `<root>/<class>/<material>/<material>_<class>_<frequency>_<seq>.wav`."""

    root: Path
    material: str
    frequency: str

    @field_validator("root")
    @classmethod
    def absolute(cls, root: Path) -> Path:
        return Path(os.path.abspath(root.expanduser()))


class SplitSection(Section):
    """Which samples are trained on, which give the test pairs (validation), and which are left for measuring effects (test).

    `sequence`: whole takes are dealt out, so that no take is on two sides. `random`: the lab's rule, `floor(0.7 n)` for training by
    torch's `random_split` with this seed; the rest is the validation side and there is no test side.
    """

    rule: Literal["sequence", "random"] = "sequence"
    train: int = Field(default=10, ge=1)
    validation: int = Field(default=4, ge=1)
    test: int = Field(default=6, ge=0)
    train_fraction: float = Field(default=0.7, gt=0, lt=1)
    seed: int = 42


class TaskSection(Section):
    """How examples and their loss are formed; None means as the checkpoints record."""

    kind: Literal["ranking"] = "ranking"
    loss: LossName | None = None
    margin: float | None = Field(default=None, ge=0)
    ghm_bins: int | None = Field(default=None, ge=1)
    ghm_alpha: float | None = Field(default=None, ge=0)
    ghm_batch: int | None = Field(default=None, ge=1)
    pairs: Literal["all", "drawn"] | None = Field(default=None, description="what was trained on; None: all unordered pairs")
    draw_seed: int | None = Field(default=None, ge=0, description="of the drawn pairs; None: the seed that the checkpoints record")
    test_pairs: int | None = Field(default=None, ge=1, description="stratified over angle gaps; None: all of them")


class CheckpointSection(Section):
    """The folder of checkpoints; `epochs` picks some of them."""

    folder: Path
    prefix: str = "model_epoch_"
    epochs: tuple[int, ...] | None = None

    @field_validator("folder")
    @classmethod
    def absolute(cls, folder: Path) -> Path:
        return Path(os.path.abspath(folder.expanduser()))


class EngineSection(Section):
    """How the kernels are computed. Each setting can change the last bits of a result and is part of every cache key."""

    batch_size: int = Field(default=32, ge=1)
    threads: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1)
    device: Literal["cpu", "cuda", "mps"] = "cpu"
    kernel_budget: int | None = Field(
        default=None, ge=1, description="bytes of one checkpoint's kernels above which layers are kept as `rest` and `last`; None: 256 MiB"
    )


class Recipe(Section):
    """One analysis, as written in `analysis.toml`."""

    name: str = ""
    simulated: bool = False
    model: ModelSection = ModelSection()
    data: DataSection
    split: SplitSection = SplitSection()
    task: TaskSection = TaskSection()
    checkpoints: CheckpointSection
    engine: EngineSection = Field(default_factory=EngineSection)

    @model_validator(mode="after")
    def named(self) -> Self:
        if not self.name:
            object.__setattr__(self, "name", self.checkpoints.folder.name)
        return self

    @model_validator(mode="after")
    def told_as_simulated(self) -> Self:
        """Recordings that say of themselves that they were simulated cannot be analysed under another flag."""
        if (self.data.root / SIMULATED_MARK).is_file():
            object.__setattr__(self, "simulated", True)
        return self

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> Self:
        """The recipe with these settings.

        Raises:
            RecipeError: names the first wrong setting and its value.
        """
        try:
            return cls.model_validate(settings)
        except ValidationError as failure:
            first = failure.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "recipe"
            raise RecipeError(
                f"The recipe's '{where}' is not usable: {first['msg']} (got {first.get('input')!r}). "
                f"Correct it in analysis.toml, or choose again on the compute page."
            ) from failure

    @classmethod
    def from_toml(cls, path: Path) -> Self:
        """The recipe in this file."""
        try:
            settings = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as failure:
            raise RecipeError(f"The recipe '{path}' cannot be read ({failure.strerror}); check the path.") from failure
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as failure:
            raise RecipeError(f"The recipe '{path}' is not valid TOML: {failure}.") from failure
        return cls.from_dict(settings)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, without the settings left open."""
        return self.model_dump(mode="json", exclude_none=True)

    def to_toml(self) -> str:
        """The text of `analysis.toml`; `from_toml` gives back an equal recipe."""
        return tomli_w.dumps(self.to_dict())

    def digest(self) -> str:
        """SHA-256 of everything but the name: equal digests ask for the same computation."""
        settings = self.to_dict()
        settings.pop("name")
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
