"""What can be asked for: options that several verbs share, and what they mean."""

import inspect
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, get_args

import typer

from tracin_core.cli.talk import say
from tracin_core.errors import InputError, MachineError, NotFoundError, RecipeError
from tracin_core.recipe import LossName, Recipe

if TYPE_CHECKING:
    from tracin_core.records.runs import Run
    from tracin_core.records.workspace import Workspace

PROJECT = Path(__file__).resolve().parents[2]
PairMode = Literal["ranking_pair", "full_pair", "sample"]
LOSS_TYPES: dict[str, str] = {"standard": "margin", **{name: name for name in get_args(LossName)}}
DEFAULT_PREFIX: Final = "model_epoch_"
SCORE_NAME: Final = "tracin_influence"


def finite(value: float | None) -> float | None:
    """The number, which is neither infinite nor NaN."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number.")
    return value


def given(options: dict[str, Any]) -> dict[str, Any]:
    """Those options that were given."""
    return {name: value for name, value in options.items() if value is not None}


def listed(text: str) -> list[str]:
    """The words between the commas."""
    words = [word.strip() for word in text.split(",")]
    if not all(words):
        raise typer.BadParameter(f"'{text}' has nothing before, after or between some of its commas.")
    return words


def numbers(text: str) -> list[float]:
    """The thresholds between the commas, each once, in their order."""
    try:
        values = [float(word) for word in listed(text)]
    except ValueError as failure:
        raise typer.BadParameter(f"'{text}' is not a list of numbers such as -5.0,-10.0,-15.0.") from failure
    for value in values:
        if not math.isfinite(value) or value > 0:
            raise typer.BadParameter(f"{value:g} is no threshold; harm is a negative influence, so give numbers of at most 0.")
    return list(dict.fromkeys(values))


WorkspaceOption = Annotated[
    Path, typer.Option("--workspace", envvar="TRACIN_WORKSPACE", help="Directory of runs, kernels and exports.", show_default=True)
]
RunOption = Annotated[str | None, typer.Option("--run", help="Id of a finished run; default: the newest.", show_default=False)]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on stdout and nothing else there: for machines.")]
LossOption = Annotated[
    str | None, typer.Option("--loss-type", help="standard, ghm, ...; default: as recorded.", show_default=False)
]
MarginOption = Annotated[float | None, typer.Option(help="Default: as recorded.", min=0, callback=finite, show_default=False)]
BinsOption = Annotated[int | None, typer.Option(help="Of ghm; default: as recorded.", min=1, show_default=False)]
AlphaOption = Annotated[
    float | None, typer.Option(help="Of ghm; default: as recorded.", min=0, callback=finite, show_default=False)
]
WorkersOption = Annotated[
    int | None, typer.Option(help="Accepted, and changes nothing: one process reads recordings.", min=0, show_default=False)
]
DeviceOption = Annotated[
    Literal["auto", "cpu", "cuda", "mps"] | None,
    typer.Option(help="Where gradients are computed; default: cpu.", show_default=False),
]


@dataclass(frozen=True)
class Analysis:
    """What is analysed. Everything is None where it was not given, so that a recipe is not overruled in silence."""

    material: Annotated[str | None, typer.Option(help="Material of the recordings.", show_default=False)] = None
    frequency: Annotated[str | None, typer.Option(help="500hz, 1000hz, 3000hz, ... or all.", show_default=False)] = None
    checkpoint_dir: Annotated[
        Path | None,
        typer.Option(help="Folder of checkpoints, or of folders <material>_<frequency>_... of them.", show_default=False),
    ] = None
    data_root: Annotated[Path | None, typer.Option(help="Folder that holds deg000, deg036, ...", show_default=False)] = None
    checkpoint_prefix: Annotated[
        str | None, typer.Option(help="What file names begin with; default: model_epoch_", show_default=False)
    ] = None
    layout: Annotated[
        Literal["small", "large", "large_dropout", "large_resized"] | None,
        typer.Option(
            help="Ranker: small (5,733 parameters, the default), or one of 422,337: docs/your-model.md.", show_default=False
        ),
    ] = None
    loss_type: LossOption = None
    margin: MarginOption = None
    ghm_bins: BinsOption = None
    ghm_alpha: AlphaOption = None
    num_test_samples: Annotated[
        int | None, typer.Option(help="How many test pairs, spread over angle gaps; default: all.", min=1, show_default=False)
    ] = None
    seed: Annotated[
        int | None,
        typer.Option(help="Which test pairs, where not all are taken; default: 0.", min=0, max=2**31, show_default=False),
    ] = None
    batch_size: Annotated[
        int | None,
        typer.Option(
            help="Samples differentiated at a time; default: 32, or 512 on a GPU. Memory, not scores.",
            min=1,
            show_default=False,
        ),
    ] = None
    num_workers: WorkersOption = None
    device: DeviceOption = None
    precondition: Annotated[
        Literal["none", "adam", "adam_full"] | None,
        typer.Option(help="Of checkpoints by Adam: divide gradients by its denominator; default: none.", show_default=False),
    ] = None
    recipe: Annotated[Path | None, typer.Option(help="analysis.toml, instead of all of the above.", show_default=False)] = None

    def options(self) -> dict[str, Any]:
        """What was given, by the names of the options."""
        return {option(name): value for name, value in given(vars(self)).items()}


@dataclass(frozen=True)
class Rule:
    """The harm rule, with the numbers that the lab has always used."""

    threshold: Annotated[float, typer.Option(help="Influence strictly below this is harm.", max=0, callback=finite)] = -5.0
    min_occurrences: Annotated[int, typer.Option(help="On how many test pairs a train pair must do harm.", min=1)] = 3
    max_exclusions: Annotated[int, typer.Option(help="How many entries are listed at most.", min=1)] = 50
    pair_mode: Annotated[PairMode, typer.Option(help="Pairs themselves, both their samples, or samples with all pairs.")] = (
        "ranking_pair"
    )
    consider_both_samples: Annotated[bool, typer.Option("--consider-both-samples", help="The same as --pair-mode full_pair.")] = (
        False
    )

    def settings(self, noun: str = "pair") -> dict[str, Any]:
        """The rule in plain values; where examples are samples there is one mode."""
        if self.consider_both_samples and self.pair_mode == "sample":
            raise typer.BadParameter("--consider-both-samples is --pair-mode full_pair; leave it out, or --pair-mode sample.")
        mode = "full_pair" if self.consider_both_samples else self.pair_mode
        return {
            "threshold": self.threshold,
            "min_occurrences": self.min_occurrences,
            "max_exclusions": self.max_exclusions,
            "pair_mode": mode if noun == "pair" else "sample",
        }


@dataclass(frozen=True)
class Files:
    """Which files in the existing formats are written, and where."""

    compute_self_influence: Annotated[
        bool, typer.Option("--compute-self-influence", help="Write <material>_<frequency>_metadata.json.")
    ] = False
    compute_influence: Annotated[
        bool, typer.Option("--compute-influence", help="Write <material>_<frequency>_influence_metadata.json.")
    ] = False
    save_per_checkpoint_influence: Annotated[
        bool, typer.Option("--save-per-checkpoint-influence", help="Also what each checkpoint adds, in files of their own.")
    ] = False
    metadata_dir: Annotated[
        Path | None, typer.Option(help="Where they are written; default: with the run's exports.", show_default=False)
    ] = None
    influence_score_name: Annotated[str, typer.Option(help="What keys of influences begin with.")] = SCORE_NAME

    @property
    def wanted(self) -> bool:
        return self.compute_self_influence or self.compute_influence


@dataclass(frozen=True)
class Pictures:
    """Pictures of the samples that a list names."""

    plot_harmful_samples: Annotated[
        bool, typer.Option("--plot-harmful-samples", help="Copy the picture of each sample that the list names.")
    ] = False
    plots_dir: Annotated[Path, typer.Option(help="Where to.")] = Path("plots")


@dataclass(frozen=True)
class Marking:
    """What is written down about a list beside it."""

    verbose: Annotated[bool, typer.Option("--verbose", help="Show every entry with its numbers.")] = False
    update_metadata: Annotated[
        bool, typer.Option("--update-metadata", help="Mark what is listed in a metadata file: excluded, notes, tracin_info.")
    ] = False
    sample_metadata: Annotated[
        Path | None, typer.Option(help="The file of --update-metadata; default: that of --metadata-file.", show_default=False)
    ] = None


def option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def spread(verb: Callable[..., None]) -> Callable[..., None]:
    """The same verb, but for groups of options (parameters that are dataclasses), which are given option by option."""
    parameters = inspect.signature(verb).parameters.values()
    groups: dict[str, Any] = {each.name: each.annotation for each in parameters if is_dataclass(each.annotation)}
    flat: list[inspect.Parameter] = []
    for each in parameters:
        inner = fields(groups[each.name]) if each.name in groups else ()
        flat += [inspect.Parameter(one.name, each.KEYWORD_ONLY, default=one.default, annotation=one.type) for one in inner] or [
            each.replace(kind=each.KEYWORD_ONLY)
        ]

    @wraps(verb)
    def asked(**options: Any) -> None:
        for name, group in groups.items():
            options[name] = group(**{one.name: options.pop(one.name) for one in fields(group)})
        verb(**options)

    asked.__signature__ = inspect.Signature(flat)  # type: ignore[attr-defined]
    asked.__annotations__ = {each.name: each.annotation for each in flat}
    return asked


# ---- workspaces, runs, recipes ----------------------------------------------------------------------------------------------


def opened(workspace: Path) -> "Workspace":
    """The workspace in this directory, made if it is not there."""
    from tracin_core.records.workspace import open_workspace

    return open_workspace(workspace)


def the_run(place: "Workspace", run_id: str | None) -> "Run":
    """The named run, or the newest finished one."""
    if run_id is not None:
        return place.run(run_id)
    finished = place.runs().query("state == 'done'")
    if finished.empty:
        raise NotFoundError("There is no finished run in this workspace; start one with compute-influence, or with demo.")
    return place.run(str(finished["id"].iloc[0]))


def loss_named(loss_type: str | None) -> str | None:
    """The loss behind the lab's name for it ('standard' is the margin loss)."""
    if loss_type is None:
        return None
    if loss_type not in LOSS_TYPES:
        raise RecipeError(f"There is no loss '{loss_type}'; choose from {', '.join(LOSS_TYPES)}.")
    return LOSS_TYPES[loss_type]


def recipes_of(asked: Analysis, frequencies: list[str] | None = None) -> list[Recipe]:
    """What is to be analysed, in this order: one recipe, or one per frequency.

    `all` (of --frequency) is one analysis of all recordings together where the checkpoint folder itself holds checkpoints: they are of a
    model that saw all. Else each frequency found under the data root has its own checkpoints, and is analysed for itself.
    """
    say_what_changes_nothing(asked)
    if asked.recipe is not None:
        told = [name for name in asked.options() if name not in ("--recipe", "--num-workers")]
        if named := [*told, *(["--frequencies"] if frequencies else [])]:
            raise typer.BadParameter(f"--recipe decides everything; leave out {', '.join(named)}, or --recipe.")
        return [Recipe.from_toml(asked.recipe)]
    if frequencies is not None and asked.frequency is not None:
        raise typer.BadParameter("--frequencies says it already; leave out --frequency.")
    needed = {"--material": asked.material, "--data-root": asked.data_root, "--checkpoint-dir": asked.checkpoint_dir}
    needed |= {} if frequencies else {"--frequency": asked.frequency}
    if absent := needed.keys() - given(needed).keys():
        raise typer.BadParameter(f"give {', '.join(sorted(absent))}, or --recipe analysis.toml.")
    chosen = frequencies or [str(asked.frequency)]
    folder = Path(str(asked.checkpoint_dir))
    if "all" in chosen and (frequencies or not holds_checkpoints(folder, asked.checkpoint_prefix)):
        chosen = found_frequencies(asked)
        say(f"Frequencies of {asked.material}, one after the other: {', '.join(chosen)}")
    device = found_device() if asked.device == "auto" else asked.device
    return [recipe_at(asked, frequency, checkpoints_at(asked, folder, frequency), device) for frequency in chosen]


def recipe_at(asked: Analysis, frequency: str, folder: Path, device: str | None) -> Recipe:
    """The recipe of one frequency."""
    task = {
        "loss": loss_named(asked.loss_type),
        "margin": asked.margin,
        "ghm_bins": asked.ghm_bins,
        "ghm_alpha": asked.ghm_alpha,
        "test_pairs": asked.num_test_samples,
        "test_seed": None if asked.num_test_samples is None else asked.seed,
    }
    return Recipe.from_dict(
        {
            "model": given({"layout": asked.layout}),
            "data": {"root": asked.data_root, "material": asked.material, "frequency": frequency},
            "task": given(task),
            "checkpoints": given({"folder": folder, "prefix": asked.checkpoint_prefix}),
            "engine": given({"batch_size": asked.batch_size, "device": device, "precondition": asked.precondition}),
        }
    )


def say_what_changes_nothing(asked: Analysis) -> None:
    """A line for each option whose meaning is not what its name leads one to expect."""
    if asked.num_workers is not None:
        say(f"--num-workers {asked.num_workers} changes nothing: recordings are read by one process, once.")
    if asked.batch_size is not None:
        say(f"--batch-size {asked.batch_size} changes memory and time; scores differ in their last bits at most.")
    if asked.seed is not None and asked.num_test_samples is None:
        say(f"--seed {asked.seed} changes nothing: all test pairs are taken (--num-test-samples takes fewer).")


def holds_checkpoints(folder: Path, prefix: str | None) -> bool:
    """Whether files of this folder, not of folders in it, are checkpoints."""
    from tracin_core.records.checkpoint_files import epoch_of

    return folder.is_dir() and any(epoch_of(path.name, prefix or DEFAULT_PREFIX) is not None for path in folder.iterdir())


def checkpoints_at(asked: Analysis, folder: Path, frequency: str) -> Path:
    """The folder itself, or the one `<material>_<frequency>_...` in it that holds checkpoints; of several, the one written last."""
    if holds_checkpoints(folder, asked.checkpoint_prefix):
        return folder
    within = [path for path in folder.glob(f"{asked.material}_{frequency}_*") if holds_checkpoints(path, asked.checkpoint_prefix)]
    if not within:
        return folder  # whose refusal says what is there
    newest = max(within, key=lambda path: max(file.stat().st_mtime_ns for file in path.iterdir()))
    if len(within) > 1:
        say(f"Of {len(within)} folders of {asked.material} {frequency}, the one written last is taken: {newest.name}")
    return newest


def found_frequencies(asked: Analysis) -> list[str]:
    """Those of the material under the data root, lowest first.

    Raises:
        InputError: there is none.
    """
    from tracin_core.data.recordings import find_recordings

    table = find_recordings(Path(str(asked.data_root)))
    names = sorted(set(table.loc[table["material"] == asked.material, "frequency"]), key=lambda name: (len(name), name))
    if not names:
        raise InputError(
            f"'{Path(str(asked.data_root)).name}' has no recordings of '{asked.material}' (it has "
            f"{', '.join(sorted(set(table['material']))[:5]) or 'none at all'}); choose another --material or --data-root."
        )
    return names


def found_device() -> str:
    """The accelerator that torch finds here, else the CPU; named, because the last bits of scores depend on it.

    Raises:
        MachineError: torch does not start.
    """
    program = "import torch; print('cuda' if torch.cuda.is_available() else 'mps' if torch.backends.mps.is_available() else 'cpu')"
    found = subprocess.run([sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True, check=False)
    if found.returncode:
        raise MachineError("torch does not start here, so no device can be found; give --device cpu, or run 'make setup'.")
    say(f"--device auto is {found.stdout.strip()} on this machine.")
    return found.stdout.strip()


def training_recipe(place: "Workspace", run_id: str | None, *, data: dict[str, Any], task: dict[str, Any]) -> Recipe:
    """What a training follows: the named run, or the newest, but for the data and task that are given.

    With the whole of the data given and no run named, none is needed.
    """
    if run_id is None and len(data) == 3:
        known: dict[str, Any] = {"checkpoints": {"folder": place.root / "trainings"}, "data": {"kind": "recordings"}}
    else:
        run = the_run(place, run_id)
        known = run.recipe.to_dict()
        settings = {
            name: getattr(run.loss, name, None) for name in ("margin", "ghm_bins", "ghm_alpha", "smoothing", "gamma", "q", "delta")
        }
        fields_of_task = type(run.recipe.task).model_fields
        recorded = {name: value for name, value in settings.items() if name in fields_of_task and value is not None}
        task = {**known["task"], "loss": run.loss.name, **recorded, **task}
        say(f"As run {run.id}: {run.name}{' [SIMULATED data]' if run.simulated else ''}")
    data = {**known["data"], **data}
    simulated = data == known["data"] and known.get("simulated", False)
    return Recipe.from_dict({**known, "data": data, "task": task, "simulated": simulated})
