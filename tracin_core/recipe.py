"""What is analysed: the one validated model of `analysis.toml`.

A recipe names a model, a data set, a split, a task and a checkpoint folder. Settings that only change how scores are read
(margin, checkpoint weights, measure) are defaults here and can all be changed in a view without a new computation.
"""

import hashlib
import ipaddress
import json
import os
import re
import tomllib
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, Self

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
    """How the kernels are computed, and where.

    How: each of `batch_size`, `threads`, `device` and `kernel_budget` can change the last bits of a result and is part of every cache key.
    Where (`WHERE`): the same bytes come from this machine and from a cluster, so none of these is part of any key or run id.
    """

    WHERE: ClassVar[frozenset[str]] = frozenset({"executor", "scheduler", "tls_ca", "tls_cert", "tls_key", "shared_root"})

    batch_size: int = Field(default=32, ge=1)
    threads: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1)
    device: Literal["cpu", "cuda", "mps"] = "cpu"
    kernel_budget: int | None = Field(
        default=None,
        ge=1,
        description="bytes of one checkpoint's kernels above which layers are kept as `rest` and `last`; None: 256 MiB",
    )
    executor: Literal["local", "dask"] = Field(
        default="local", description="local: this machine; dask: the workers of a Dask cluster"
    )
    scheduler: str | None = Field(default=None, description="of the Dask cluster: tls://host:port, or tcp:// on this machine only")
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    shared_root: Path | None = Field(default=None, description="the workspace as the cluster's workers see it; None: the same path")

    @field_validator("tls_ca", "tls_cert", "tls_key")
    @classmethod
    def absolute(cls, file: Path | None) -> Path | None:
        return file and Path(os.path.abspath(file.expanduser()))

    @field_validator("shared_root")
    @classmethod
    def absolute_elsewhere(cls, root: Path | None) -> Path | None:
        if root is not None and not root.is_absolute():
            raise ValueError("shared_root is a path on other machines and has to be absolute")
        return root

    @field_validator("scheduler")
    @classmethod
    def encrypted_off_this_machine(cls, address: str | None) -> str | None:
        """A Dask scheduler runs code for whoever reaches it: without certificates it may only be reached from this machine."""
        parts = re.fullmatch(r"(tcp|tls)://(\[[0-9a-fA-F:]+\]|[^\[\]:/@]+):([0-9]{1,5})", address or "")
        if address is not None and parts is None:
            raise ValueError("a scheduler's address reads tls://host:port, or tcp://127.0.0.1:port for one on this machine")
        if parts is not None and parts[1] == "tcp" and not is_loopback(parts[2]):
            raise ValueError(
                f"TLS is required off this machine, because whoever reaches a Dask scheduler can run code on its workers, and "
                f"'{parts[2]}' is not a loopback address; start it with certificates and write tls://{parts[2]}:{parts[3]} with tls_ca, "
                f"tls_cert and tls_key"
            )
        return address

    @model_validator(mode="after")
    def cluster_is_complete(self) -> Self:
        """No setting of a cluster is left out, and none is there that nothing would look at."""
        files = [name for name in ("tls_ca", "tls_cert", "tls_key") if getattr(self, name) is not None]
        if self.executor == "local":
            idle = sorted(name for name in self.WHERE - {"executor"} if getattr(self, name) is not None)
            if idle:
                raise ValueError(f'{", ".join(idle)} would change nothing without executor = "dask"; add it, or leave them out')
        elif self.scheduler is None:
            raise ValueError('executor = "dask" needs scheduler = "tls://host:port" (or tcp://127.0.0.1:port)')
        elif self.scheduler.startswith("tls:") != (len(files) == 3) or len(files) in (1, 2):
            raise ValueError(
                f"tls:// goes with tls_ca, tls_cert and tls_key, all three, and tcp:// with none, but there is {', '.join(files) or 'none'}"
            )
        return self


def is_loopback(host: str) -> bool:
    """Whether this host is the machine itself, without asking any name server."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


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
        """SHA-256 of everything but the name and where it is computed: equal digests ask for the same computation."""
        settings = self.to_dict()
        settings.pop("name")
        settings["engine"] = {name: value for name, value in settings["engine"].items() if name not in EngineSection.WHERE}
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
