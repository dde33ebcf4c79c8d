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
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, Self, TypeVar, get_args

import tomli_w
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from tracin_core.errors import RecipeError

SIMULATED_MARK: Final = "SIMULATED.txt"  # lies beside recordings that were not measured
LossName = Literal["margin", "ghm", "ghm_legacy", "logistic", "squared_hinge"]
LabelLossName = Literal["cross_entropy", "label_smoothing", "focal", "generalized_cross_entropy", "binary_cross_entropy"]
NumberLossName = Literal["squared_error", "huber"]
Cotangent = Literal["score", "label_logit", "outputs"]  # whose gradients a kernel holds products of
Settings = dict[str, bool | int | float | str]  # of a plugin, as TOML holds them


def absolute(path: Path) -> Path:
    return Path(os.path.abspath(path.expanduser()))


def file_stem(name: str) -> str:
    """The name in the names of files: its letters and digits, `_` for what is between them; empty where it has none."""
    return re.sub(r"\W+", "_", name).strip("_")


AbsolutePath = Annotated[Path, AfterValidator(absolute)]
PluginName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,63}$", description="of the file plugins/<name>.py")]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def kind_of(default: str | None) -> Callable[[Any], str | None]:
    """What tells the forms of a section apart: its `kind`, or the default where none is written."""

    def kind(section: Any) -> str | None:
        return section.get("kind", default) if isinstance(section, dict) else getattr(section, "kind", None)

    return kind


# ---- [model] ----------------------------------------------------------------------------------------------------------------


class RankerModel(Section):
    """The lab's convolutional network, which gives a spectrogram one score."""

    kind: Literal["ranker"] = "ranker"
    layout: Literal["small", "large", "large_dropout", "large_resized"] = Field(
        default="small",
        description="small: 5,733 parameters; the others 422,337, with a plain head, with dropout in it, or on spectra of 128 x 128 too",
    )


class MlpModel(Section):
    """Linear layers with ReLU between them, on each sample's values in a row."""

    kind: Literal["mlp"] = "mlp"
    inputs: int = Field(ge=1, description="values of one sample")
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = (128, 128)
    outputs: int = Field(default=1, ge=1, description="classes, or 1 for ranking, regression and two classes in one output")


class CnnModel(Section):
    """Convolutions and means over a grid of places, for pictures and spectrograms of any size."""

    kind: Literal["cnn"] = "cnn"
    channels: int = Field(default=1, ge=1, description="of one sample: 1 grey, 3 colours")
    widths: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(16, 32), min_length=1)
    outputs: int = Field(default=1, ge=1, description="as of the mlp")


class TransformerModel(Section):
    """A transformer encoder over sequences of tokens, or of vectors of numbers, and a mean over places."""

    kind: Literal["transformer"] = "transformer"
    vocabulary: int | None = Field(default=None, ge=1, description="samples are whole numbers below it; None: they are vectors")
    features: int | None = Field(default=None, ge=1, description="numbers in each vector; None: samples are tokens")
    length: int = Field(ge=1, description="places of the longest sample")
    width: int = Field(default=64, ge=1)
    heads: int = Field(default=4, ge=1)
    layers: int = Field(default=2, ge=1)
    outputs: int = Field(default=1, ge=1, description="as of the mlp")

    @model_validator(mode="after")
    def of_tokens_or_vectors(self) -> Self:
        if (self.vocabulary is None) == (self.features is None):
            raise ValueError("a transformer takes tokens (give vocabulary) or vectors (give features), one of the two")
        if self.width % self.heads:
            raise ValueError(f"the width {self.width} is not a multiple of its {self.heads} heads")
        return self


class PluginModel(Section):
    """What `build(**settings)` of a file in the workspace's `plugins/` returns."""

    kind: Literal["plugin"] = "plugin"
    name: PluginName
    settings: Settings = {}
    outputs: int | None = Field(default=None, ge=1, description="of the model; needed where it has more than the data have classes")


ModelSection = Annotated[
    Annotated[RankerModel, Tag("ranker")]
    | Annotated[MlpModel, Tag("mlp")]
    | Annotated[CnnModel, Tag("cnn")]
    | Annotated[TransformerModel, Tag("transformer")]
    | Annotated[PluginModel, Tag("plugin")],
    Discriminator(kind_of("ranker")),
]

MODEL_FORMS: Final[TypeAdapter[ModelSection]] = TypeAdapter(ModelSection)  # reads and writes a section by itself

# ---- [data] -----------------------------------------------------------------------------------------------------------------


class Data(Section):
    """What every form of data says of itself."""

    @property
    def place(self) -> Path:
        """The folder or file that is read."""
        raise TypeError(f"{type(self).__name__} does not say where its data are")

    @property
    def title(self) -> str:
        """What is read, in words for people."""
        return self.place.name

    @property
    def stem(self) -> str:
        """The same in the names of files."""
        return file_stem(self.title) or "data"


class RecordingsData(Data):
    """Recordings in the layout `<root>/<class>/<material>/<material>_<class>_<frequency>_<seq>.wav` (or .npy, .npz: spectra)."""

    kind: Literal["recordings"] = "recordings"
    root: AbsolutePath
    material: str
    frequency: str

    @property
    def place(self) -> Path:
        return self.root

    @property
    def title(self) -> str:
        return f"{self.material} {self.frequency}"


class ArraysData(Data):
    """One `.npz` file of arrays with a row per sample: inputs, targets, ids if wanted; every other array of one value each is metadata."""

    kind: Literal["arrays"] = "arrays"
    file: AbsolutePath
    inputs: str = "x"
    target: str = "y"
    ids: str | None = Field(default=None, description="array of names; None: `id` if there is one, else the rows are numbered")

    @property
    def place(self) -> Path:
        return self.file


class ImagesData(Data):
    """Pictures in one folder per class: `<root>/<class>/.../<name>.png` (or .jpg, .jpeg, .bmp, .gif, .webp, .tif)."""

    kind: Literal["images"] = "images"
    root: AbsolutePath
    height: int | None = Field(default=None, ge=1, description="pictures are scaled to it; None: all have one size already")
    width: int | None = Field(default=None, ge=1)
    colours: Literal["grey", "rgb"] = "grey"

    @property
    def place(self) -> Path:
        return self.root

    @model_validator(mode="after")
    def both_sides(self) -> Self:
        if (self.height is None) != (self.width is None):
            raise ValueError("pictures are scaled to a height and a width; give both, or neither")
        return self


class TableData(Data):
    """A CSV file with a row per sample: a target column, feature columns, an id column if wanted; the others are metadata."""

    kind: Literal["table"] = "table"
    file: AbsolutePath
    target: str
    features: tuple[str, ...] | None = Field(default=None, min_length=1, description="None: every column of numbers that is left")
    id: str | None = Field(default=None, description="column of names; None: `id` if there is one, else the rows are numbered")

    @property
    def place(self) -> Path:
        return self.file


class PluginData(Data):
    """What `dataset(**settings)` of a file in the workspace's `plugins/` returns: a `torch.utils.data.Dataset` of (input, target)."""

    kind: Literal["plugin"] = "plugin"
    name: PluginName
    settings: Settings = {}

    @property
    def place(self) -> Path:
        return Path(f"{self.name}.py")


DataSection = Annotated[
    Annotated[RecordingsData, Tag("recordings")]
    | Annotated[ArraysData, Tag("arrays")]
    | Annotated[ImagesData, Tag("images")]
    | Annotated[TableData, Tag("table")]
    | Annotated[PluginData, Tag("plugin")],
    Discriminator(kind_of("recordings")),
]

# ---- [split] and [task] -----------------------------------------------------------------------------------------------------


class SplitSection(Section):
    """Which samples are trained on, which give the tests (validation), and which are left for measuring effects (test).

    `sequence`: whole takes are dealt out, so that no take is on two sides. `random`: the lab's rule, `floor(0.7 n)` for training by
    torch's `random_split` with this seed; the rest is the validation side and there is no test side. `stratified`: each class is dealt
    out in these shares. `column`: a metadata column says train, validation or test. `files`: text files list the ids of each side.
    """

    rule: Literal["sequence", "random", "stratified", "column", "files"] = "sequence"
    train: int = Field(default=10, ge=1)
    validation: int = Field(default=4, ge=1)
    test: int = Field(default=6, ge=0)
    train_fraction: float = Field(default=0.7, gt=0, lt=1)
    seed: int = Field(default=42, ge=0, lt=2**32)
    validation_fraction: float | None = Field(default=None, gt=0, lt=1, description="of `stratified`; None: half of what is left")
    column: str | None = None
    train_ids: AbsolutePath | None = None
    validation_ids: AbsolutePath | None = None
    test_ids: AbsolutePath | None = None

    @model_validator(mode="after")
    def rule_is_complete(self) -> Self:
        """No setting that the rule needs is left out."""
        if self.rule == "column" and self.column is None:
            raise ValueError('rule = "column" needs column = "<name>"')
        if self.rule == "files" and (self.train_ids is None or self.validation_ids is None):
            raise ValueError('rule = "files" needs train_ids and validation_ids, each a text file with one id per line')
        if self.rule == "stratified" and self.train_fraction + (self.validation_fraction or 0) > 1:
            raise ValueError(
                f"train_fraction {self.train_fraction} and validation_fraction {self.validation_fraction} are more than 1"
            )
        return self


T = TypeVar("T", bound=Section)


def only_own_settings(task: T, own: dict[str, str]) -> T:
    """The task, if no setting is given that its loss would not look at; where it names no loss, the recorded one may be any."""
    loss = getattr(task, "loss", None)
    idle = [setting for name, setting in own.items() if loss not in (None, name) and getattr(task, setting) is not None]
    if idle:
        raise ValueError(
            f"{idle[0]} would change nothing with loss = {loss!r}; leave it out, or choose the loss that it belongs to"
        )
    return task


class RankingTask(Section):
    """Pairs of samples and their loss; None means as the checkpoints record."""

    kind: Literal["ranking"] = "ranking"
    loss: LossName | None = None
    margin: float | None = Field(default=None, ge=0)
    ghm_bins: int | None = Field(default=None, ge=1)
    ghm_alpha: float | None = Field(default=None, ge=0)
    ghm_batch: int | None = Field(default=None, ge=1)
    pairs: Literal["all", "drawn"] | None = Field(default=None, description="what was trained on; None: all unordered pairs")
    draw_seed: int | None = Field(default=None, ge=0, description="of the drawn pairs; None: the seed that the checkpoints record")
    test_pairs: int | None = Field(default=None, ge=1, description="stratified over angle gaps; None: all of them")
    test_seed: int | None = Field(default=None, ge=0, lt=2**32, description="which of them, where there are more; None: 0")


class ClassificationTask(Section):
    """Samples with one of several labels; None means as the checkpoints record."""

    kind: Literal["classification"] = "classification"
    loss: LabelLossName | None = None
    smoothing: float | None = Field(default=None, ge=0, lt=1, description="of label_smoothing")
    gamma: float | None = Field(default=None, ge=0, description="of focal")
    q: float | None = Field(default=None, gt=0, le=1, description="of generalized_cross_entropy")
    kernel: Literal["label_logit", "outputs"] = Field(
        default="label_logit",
        description="label_logit: of logit(p_y), small; outputs: k x k times as large, and every loss and label can be asked for",
    )

    @model_validator(mode="after")
    def settings_are_of_the_loss(self) -> Self:
        return only_own_settings(self, {"label_smoothing": "smoothing", "focal": "gamma", "generalized_cross_entropy": "q"})


class RegressionTask(Section):
    """Samples with a number to meet; None means as the checkpoints record."""

    kind: Literal["regression"] = "regression"
    loss: NumberLossName | None = None
    delta: float | None = Field(default=None, gt=0, description="of huber")

    @model_validator(mode="after")
    def settings_are_of_the_loss(self) -> Self:
        return only_own_settings(self, {"huber": "delta"})


TaskSection = Annotated[
    Annotated[RankingTask, Tag("ranking")]
    | Annotated[ClassificationTask, Tag("classification")]
    | Annotated[RegressionTask, Tag("regression")],
    Discriminator(kind_of("ranking")),
]

# ---- [checkpoints] and [engine] ---------------------------------------------------------------------------------------------


class CheckpointSection(Section):
    """The folder of checkpoints; `epochs` picks some of them."""

    folder: AbsolutePath
    prefix: str = "model_epoch_"
    epochs: tuple[int, ...] | None = None


class EngineSection(Section):
    """How the kernels are computed, and where.

    How: each of `batch_size`, `threads`, `device` and `kernel_budget` can change the last bits of a result and is part of every cache key;
    `precondition`, with the `damping` of "ekfac", changes what is computed, and is part of it where it is not "none".
    Where (`WHERE`): the same bytes come from this machine and from a cluster, so none of these is part of any key or run id.
    """

    WHERE: ClassVar[frozenset[str]] = frozenset({"executor", "scheduler", "tls_ca", "tls_cert", "tls_key", "shared_root"})

    device: Literal["cpu", "cuda", "mps"] = "cpu"
    batch_size: int = Field(default_factory=lambda above: 32 if above.get("device") == "cpu" else 512, ge=1)
    threads: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1)
    kernel_budget: int | None = Field(
        default=None,
        ge=1,
        description="bytes of one checkpoint's kernels above which layers are kept as `rest` and `last`; None: 256 MiB",
    )
    precondition: Literal["none", "adam", "adam_full", "ekfac"] = Field(
        default="none",
        description="adam, adam_full: gradients divided by Adam's frozen denominator, by row and column means or in full; ekfac: by the "
        "damped curvature of the training side at each checkpoint; none: plain gradients, as of SGD",
    )
    damping: float = Field(
        default=1.0, gt=0, allow_inf_nan=False, description="of ekfac: times the mean eigenvalue of the curvature"
    )
    executor: Literal["local", "dask"] = Field(
        default="local", description="local: this machine; dask: the workers of a Dask cluster"
    )
    scheduler: str | None = Field(default=None, description="of the Dask cluster: tls://host:port, or tcp:// on this machine only")
    tls_ca: AbsolutePath | None = None
    tls_cert: AbsolutePath | None = None
    tls_key: AbsolutePath | None = None
    shared_root: Path | None = Field(default=None, description="the workspace as the cluster's workers see it; None: the same path")

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
    def damping_is_of_ekfac(self) -> Self:
        if self.damping != 1.0 and self.precondition != "ekfac":
            raise ValueError('damping would change nothing without precondition = "ekfac"; add it, or leave damping out')
        return self

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


# Pydantic names the form of a section in the place of a fault; `analysis.toml` does not.
KINDS: Final = frozenset(
    form.__metadata__[0].tag for section in (ModelSection, DataSection, TaskSection) for form in get_args(get_args(section)[0])
)


class Recipe(Section):
    """One analysis, as written in `analysis.toml`."""

    name: str = ""
    simulated: bool = False
    model: ModelSection = RankerModel()
    data: DataSection
    split: SplitSection = SplitSection()
    task: TaskSection = RankingTask()
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
        if isinstance(self.data, RecordingsData) and (self.data.root / SIMULATED_MARK).is_file():
            object.__setattr__(self, "simulated", True)
        return self

    @model_validator(mode="after")
    def split_suits_the_data(self) -> Self:
        """Only recordings have takes; other data are dealt out class by class where no rule is given."""
        if isinstance(self.data, RecordingsData) or self.split.rule != "sequence":
            return self
        if "rule" in self.split.model_fields_set:
            raise ValueError(f'{self.data.kind} have no takes; choose the split rule = "stratified", "random", "column" or "files"')
        object.__setattr__(self, "split", SplitSection(**{**self.split.model_dump(exclude_unset=True), "rule": "stratified"}))
        return self

    @model_validator(mode="after")
    def outputs_suit_the_task(self) -> Self:
        """Ranking and regression read one output; classes need two, or one for the second of two."""
        outputs = getattr(self.model, "outputs", 1 if isinstance(self.model, RankerModel) else None)
        if self.task.kind in ("ranking", "regression") and outputs not in (1, None):
            raise ValueError(f"{self.task.kind} reads one output of the model, but it has {outputs}; give outputs = 1")
        return self

    @model_validator(mode="after")
    def curvature_suits_the_task(self) -> Self:
        """EKFAC is a sum over samples; a loss of pairs has a curvature that no sum over samples is."""
        if self.engine.precondition == "ekfac" and self.task.kind == "ranking":
            raise ValueError(
                'precondition = "ekfac" is of losses of single samples, and ranking is of pairs; set precondition = "none" and ask for the '
                "method curvature, which is exact in the span of the samples"
            )
        return self

    @property
    def classes(self) -> int | None:
        """How many labels a classifier tells apart, where the model's section says so."""
        outputs = getattr(self.model, "outputs", None)
        return None if outputs is None or self.task.kind != "classification" else max(outputs, 2)

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
            where = ".".join(str(part) for part in first["loc"] if part not in KINDS) or "recipe"
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
        """Plain values, without the settings left open; and without `precondition` and `damping` where they change nothing, because older
        digests do not know them.
        """
        told = self.model_dump(mode="json", exclude_none=True)
        for name in self._idle:
            del told["engine"][name]
        return told

    @property
    def _idle(self) -> set[str]:
        """Settings of the engine that change nothing."""
        form = self.engine.precondition
        return {"precondition", "damping"} if form == "none" else set() if form == "ekfac" else {"damping"}

    @property
    def plain(self) -> Self:
        """The same analysis by plain gradients."""
        engine = self.engine.model_copy(update={"precondition": "none", "damping": 1.0})
        return self.model_copy(update={"engine": engine})

    def to_toml(self) -> str:
        """The text of `analysis.toml`; `from_toml` gives back an equal recipe."""
        return tomli_w.dumps(self.to_dict())

    def to_toml_without_places(self) -> str:
        """The text for readers elsewhere: of each path on this machine only the last part, so that nobody learns where things lie here."""
        return tomli_w.dumps(_without_places(self.to_dict()))

    def digest(self) -> str:
        """SHA-256 of everything but the name and where it is computed: equal digests ask for the same computation."""
        settings = self.to_dict()
        settings.pop("name")
        settings["engine"] = {name: value for name, value in settings["engine"].items() if name not in EngineSection.WHERE}
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _without_places(value: Any) -> Any:
    """The same, each absolute path as its last part."""
    if isinstance(value, dict):
        return {name: _without_places(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_places(part) for part in value]
    return Path(value).name if isinstance(value, str) and os.path.isabs(value) else value
