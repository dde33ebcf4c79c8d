"""Checkpoints: taken in through a limited child process, kept as canonical safetensors named by their SHA-256, loaded from there only.

    python -m tracin_core.engine.checkpoints     the child: per line of stdin a JSON request; a line when ready, then a JSON answer per file

The identity of a checkpoint is that of its weights. What else a file records (epoch, learning rate, losses) belongs to whoever analyses
it: two files with equal weights share one copy, and each has its own `Checkpoint`.
"""

import ctypes
import hashlib
import io
import json
import os
import re
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import IO, Any, Final, NamedTuple, Self, get_args

import safetensors.torch
import torch
from torch import nn

from tracin_core.data.files import write_whole
from tracin_core.engine.intake import (
    bytes_of,
    comes_from,
    facts_of,
    load_checked,
    plain_text,
    printable,
    read_once,
    refusal,
    unsafe,
)
from tracin_core.engine.second_moments import Unfit, is_of_adam, second_moment
from tracin_core.errors import (
    CheckpointError,
    CheckpointMismatchError,
    DiskFullError,
    MachineError,
    UnsafeCheckpointError,
    WorkspaceError,
)

ANSWER_SECONDS: Final = 600.0  # wall time for one file, its reading from a slow disk included
CPU_SECONDS: Final = 60
OLDEST_TORCH: Final = (2, 10)  # older ones can be made to run code or corrupt memory by `weights_only=True` itself
NO_NEW_PRIVILEGES: Final = 38  # PR_SET_NO_NEW_PRIVS of linux/prctl.h
CHILD: Final = ("-m", "tracin_core.engine.checkpoints")

STATE_KEYS: Final = ("model_state_dict", "state_dict", "model", "net")
PREFIXES: Final = ("module.", "_orig_mod.", "model.", "net.")  # of data parallelism, of torch.compile, of Lightning modules
COUNTER: Final = "num_batches_tracked"
KEY_PATTERN: Final = re.compile(r"[\w.\-]{1,256}")
CODES: Final = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip

OF_ADAM: Final = frozenset({"second_moment", "no_second_moment"})  # said of checkpoints by Adam only
FLOATS: Final = ("F64", "F32", "F16", "BF16")

KINDS: Final[dict[str, type[CheckpointError]]] = {
    kind.__name__: kind for kind in (CheckpointError, UnsafeCheckpointError, CheckpointMismatchError)
}


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint of a training. `digest` names its canonical weights; None means that the file does not say.

    `epoch` is the one that the file records, else the number at the end of its name; `recorded_epoch` only the former.
    `descent` holds momentum, dampening, weight_decay and nesterov as far as the optimiser's state records them.
    `stored_as` are the number formats of its weights in the file; 16-bit weights are kept as float32.
    `second_moment` names the copy of Adam's second moment (`second_moments.py`); of a file by Adam that gives none,
    `no_second_moment` says why.
    """

    epoch: int
    digest: str
    source: str
    parameters: int
    learning_rate: float | None
    optimizer: str | None
    train_loss: float | None
    validation_loss: float | None
    train_accuracy: float | None
    validation_accuracy: float | None
    rate_sum: float | None
    descent: dict[str, float]
    recorded_epoch: int | None
    stored_as: str
    arguments: dict[str, Any]
    second_moment: str | None = None
    no_second_moment: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without a second moment that nothing is said of; `from_dict` gives back an equal checkpoint."""
        return {name: value for name, value in asdict(self).items() if name not in OF_ADAM or value is not None}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The checkpoint with these values.

        Raises:
            CheckpointError: a value is missing or unknown.
        """
        names = {field.name for field in fields(cls)}
        wrong = sorted((names ^ set(values)) - OF_ADAM)
        if wrong:
            told = "is missing" if wrong[0] in names else "is unknown"
            raise CheckpointError(f"A stored checkpoint's '{wrong[0]}' {told}; take the checkpoint folder in again.")
        return cls(**values)


# ---- what the rest of the product asks for ----------------------------------------------------------------------------------


def intake_folder(
    paths: Sequence[Path], store: Path, model: nn.Module, *, on_each: Callable[[int], None] | None = None
) -> list[Checkpoint | CheckpointError]:
    """Each file taken in, or its refusal in one line, in the order of the paths. `on_each` is told how many are finished.

    One child process serves all files; a file that brings it down costs only itself.

    Raises:
        MachineError: the child cannot start, or the store cannot be written; no file is to blame.
    """
    make_folder(store)
    outcomes: list[Checkpoint | CheckpointError] = []
    with closing(answered(paths, {"": model}, store)) as answers:
        for outcome, _ in answers:
            outcomes.append(outcome)
            if on_each is not None:
                on_each(len(outcomes))
    return outcomes


def inspect_files(
    paths: Sequence[Path], models: Mapping[str, nn.Module]
) -> Generator[tuple[Checkpoint | CheckpointError, list[str]], None, None]:
    """What `intake_folder` would say of each file, as it comes, and the names of all models here that its tensors fit. Nothing is kept.

    Models whose tensors have the same names and shapes fit the same files: a state dict holds no strides.

    Raises:
        MachineError: the child cannot start.
    """
    return answered(paths, models, None)


def intake(source: Path, store: Path, model: nn.Module) -> Checkpoint:
    """The checkpoint in this file.

    Raises:
        CheckpointError: the refusal.
        MachineError: as in `intake_folder`.
    """
    (outcome,) = intake_folder([source], store, model)
    if isinstance(outcome, CheckpointError):
        raise outcome
    return outcome


def load_weights(model: nn.Module, store: Path, digest: str) -> None:
    """The model has the weights of this canonical copy, whose bytes were compared with its name. Batch counters stay as they are.

    Raises:
        CheckpointMismatchError: they are another model's.
        CheckpointError: the copy is not in the store any more, or is damaged.
    """
    path = store / f"{digest}.safetensors"
    if not re.fullmatch("[0-9a-f]{64}", digest) or not path.is_file():
        raise CheckpointError(f"The weights {digest[:12]} are not in the workspace any more; take the checkpoint folder in again.")
    if file_digest(path) != digest:
        raise CheckpointError(f"The weights {digest[:12]} are damaged on the disk; take the checkpoint folder in again.")
    weights = safetensors.torch.load_file(path)
    if {name: list(value.shape) for name, value in weights.items()} != expected_shapes(model):
        raise CheckpointMismatchError(f"The weights {digest[:12]} do not fit this model; choose the model they were trained with.")
    model.load_state_dict(weights, strict=False)


def expected_shapes(model: nn.Module) -> dict[str, list[int]]:
    """What a checkpoint must hold to be this model's: every parameter and buffer, except batch counters."""
    return {name: list(value.shape) for name, value in model.state_dict().items() if not is_counter(name)}


def is_counter(name: str) -> bool:
    return name.rsplit(".", 1)[-1] == COUNTER


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_whole(store: Path, digest: str) -> bool:
    """The store holds the copy of this name, byte for byte."""
    path = store / f"{digest}.safetensors"
    return re.fullmatch("[0-9a-f]{64}", digest) is not None and path.is_file() and file_digest(path) == digest


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as failure:
        raise WorkspaceError(
            f"The folder '{folder.name}' cannot be made ({failure.strerror}); choose another workspace."
        ) from failure


# ---- the parent's side ------------------------------------------------------------------------------------------------------


def answered(
    paths: Sequence[Path], models: Mapping[str, nn.Module], store: Path | None
) -> Generator[tuple[Checkpoint | CheckpointError, list[str]], None, None]:
    """Each file's outcome, and the models that it fits; another child goes on where one was brought down."""
    request = {
        "store": None if store is None else os.path.abspath(store),
        "cpu_seconds": CPU_SECONDS,
        "models": {name: demands(model)._asdict() for name, model in models.items()},
        "layouts": layouts(),
    }
    done = 0
    while done < len(paths):
        before = done
        with child({**request, "paths": [str(path.absolute()) for path in paths[before:]]}) as answers:
            for answer in answers:
                done += 1
                yield outcome_of(paths[done - 1].name, store, answer), answer.get("fits", [])
        if done < len(paths):
            reason = "reading it took more memory or time than its size allows"
            yield unsafe(paths[done].name, reason, "save the model's state dict alone"), []
            done += 1


class Demands(NamedTuple):
    """What the child has to know about a model: no code, only names, shapes and formats."""

    expected: dict[str, list[int]]
    dtypes: dict[str, str]
    counters: list[str]
    tied: list[list[str]]
    parameters: int
    shapes: dict[str, list[int]]
    frozen: list[str]


def demands(model: nn.Module) -> Demands:
    state = model.state_dict()
    return Demands(
        expected=expected_shapes(model),
        dtypes={name: CODES.get(value.dtype, "F32") for name, value in state.items() if not is_counter(name)},
        counters=[name for name in state if is_counter(name)],
        tied=tied(state),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        shapes={name: list(parameter.shape) for name, parameter in model.named_parameters()},
        frozen=[name for name, parameter in model.named_parameters() if not parameter.requires_grad],
    )


def tied(state: Mapping[str, torch.Tensor]) -> list[list[str]]:
    """Names under which the model has one and the same tensor."""
    groups: dict[tuple[int, tuple[int, ...], tuple[int, ...]], list[str]] = {}
    for name, value in state.items():
        if value.numel():
            groups.setdefault((value.data_ptr(), tuple(value.shape), value.stride()), []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def layouts() -> dict[str, dict[str, list[int]]]:
    """Names and shapes of the published rankers, so that a refusal can say which one a file belongs to."""
    from tracin_core.engine.models import Layout, Ranker  # brings readers of data along, which the child does without

    with torch.device("meta"):
        return {layout: expected_shapes(Ranker(layout)) for layout in get_args(Layout)}


@contextmanager
def child(request: dict[str, Any]) -> Iterator[Iterator[dict[str, Any]]]:
    """The answers of a new child process to this request, as they come; it has ended afterwards, whatever happened here."""
    process = subprocess.Popen(
        [sys.executable, *CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"},
    )
    complaints: list[str] = []
    listener = threading.Thread(target=lambda: complaints.extend(process.stderr or ()), daemon=True)
    listener.start()
    try:
        yield replies(process, request, complaints, listener)
    finally:
        process.kill()
        process.wait()
        listener.join()
        for pipe in (process.stdin, process.stdout, process.stderr):
            close_quietly(pipe)


def close_quietly(pipe: IO[str] | None) -> None:
    try:
        if pipe is not None:
            pipe.close()
    except BrokenPipeError:
        return  # the child ended before it read its request; `replies` has said so


def replies(
    process: subprocess.Popen[str], request: dict[str, Any], complaints: list[str], listener: threading.Thread
) -> Iterator[dict[str, Any]]:
    """The child's answers; silence for `ANSWER_SECONDS` ends it."""
    if process.stdin is None or process.stdout is None:
        raise MachineError("The checkpoint reader has no pipes; start the program again.")
    try:
        process.stdin.write(f"{json.dumps(request)}\n")
        process.stdin.close()
    except BrokenPipeError:
        pass  # told below: no line says that it is ready
    ready = False
    while True:
        watchdog = threading.Timer(ANSWER_SECONDS, process.kill)
        watchdog.start()
        try:
            line = process.stdout.readline()
        finally:
            watchdog.cancel()
            watchdog.join()
        if not line.endswith("\n"):
            break
        if line.startswith("{"):
            if ready:
                yield json.loads(line)
            ready = True
    if not ready:
        listener.join()
        told = complaints[-1].strip()[:120] if complaints else f"exit status {process.wait()}"
        raise MachineError(f"The process that reads checkpoints cannot start ({told}); check the installation with 'make setup'.")


def outcome_of(name: str, store: Path | None, answer: Mapping[str, Any]) -> Checkpoint | CheckpointError:
    """The child's answer as a value; where there is a store, its copy counts only if its bytes have the promised SHA-256."""
    if "disk_full" in answer:
        raise DiskFullError(str(answer["disk_full"]))
    if "machine" in answer:
        raise MachineError(str(answer["machine"]))
    if "refused" in answer:
        return KINDS.get(answer["kind"], CheckpointError)(answer["refused"])
    checkpoint = Checkpoint.from_dict(answer["accepted"])
    if store is None:
        return checkpoint
    digests = [checkpoint.digest, *([] if checkpoint.second_moment is None else [checkpoint.second_moment])]
    if not all(is_whole(store, digest) for digest in digests):
        return refusal(CheckpointError, name, "its copy in the workspace is not what was checked", "take the folder in again")
    return checkpoint


# ---- the child's side: weights ----------------------------------------------------------------------------------------------


class Request(NamedTuple):
    """What `answered` asks of the child. Without a store nothing is kept."""

    store: str | None
    cpu_seconds: int
    models: dict[str, Demands]
    layouts: dict[str, dict[str, list[int]]]
    paths: list[str]


def take_in(path: Path, request: Request) -> dict[str, Any]:
    """The file's canonical weights are in the store; returns the `Checkpoint` as a dictionary, and the models that it fits."""
    content, records = load_checked(path.name, read_once(path, request.cpu_seconds))
    facts = facts_of(path.name, content)
    found, fits = weights_of(path.name, content, request)
    asked = request.models[fits[0]]
    stored_as = ", ".join(
        sorted({str(value.dtype).removeprefix("torch.") for value in found.values() if value.is_floating_point()})
    )
    store = None if request.store is None else Path(request.store)
    digest = keep(canonical(path.name, found, asked, records), store)
    recorded = {"digest": digest, "source": plain_text(path.name), "parameters": asked.parameters, "stored_as": stored_as}
    return {"accepted": {**facts, **recorded, **told_of_adam(content, asked, records, store)}, "fits": fits}


def told_of_adam(content: dict[Any, Any], asked: Demands, records: frozenset[str] | None, store: Path | None) -> dict[str, str]:
    """Where the file is of a training by Adam: the name of its second moment, or why there is none. The weights are good either way."""
    if not is_of_adam(content):
        return {}
    try:
        return {"second_moment": keep(second_moment(content, asked.shapes, asked.frozen, records), store)}
    except Unfit as reason:
        return {"no_second_moment": plain_text(printable(str(reason)))}


def weights_of(name: str, content: dict[Any, Any], request: Request) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The tensors by the names that the models here give them, and the models that have exactly these.

    Raises:
        CheckpointMismatchError: none has; the sentence is about the model that lacks the fewest.
    """
    state = state_of(content)
    readings = {model: reading(name, state, asked) for model, asked in request.models.items()}
    fits = [model for model, weights in readings.items() if shapes_of(weights) == request.models[model].expected]
    if fits:
        return readings[fits[0]], fits
    nearest = min(readings, key=lambda model: len(readings[model].keys() ^ request.models[model].expected.keys()))
    raise mismatch(name, shapes_of(readings[nearest]), nearest, request)


def reading(name: str, state: dict[Any, Any], asked: Demands) -> dict[str, torch.Tensor]:
    """The tensors by the model's own names: without wrappers' prefixes and batch counters, tied ones under every name."""
    weights: dict[str, torch.Tensor] = {}
    for key, value in dict.items(state):
        bare = bare_name(key, asked) if isinstance(key, str) else str(key)
        if not isinstance(value, torch.Tensor):
            told = f"'{bare[:40]}' holds no tensor but a value of type {type(value).__name__}"
            raise refusal(CheckpointError, name, told, f"save the weights under {' or '.join(STATE_KEYS[:2])}")
        if not isinstance(key, str) or (bare not in asked.expected and not KEY_PATTERN.fullmatch(bare)):
            raise refusal(CheckpointError, name, f"'{bare[:60]}' is no name of a tensor", "save model.state_dict() as it is")
        if bare in weights:
            raise refusal(CheckpointError, name, f"it holds '{bare[:60]}' twice", "save the bare model's state dict")
        weights[bare] = value
    fill_tied(weights, asked.tied)
    for counter in asked.counters:
        weights.pop(counter, None)
    return weights


def shapes_of(weights: Mapping[str, torch.Tensor]) -> dict[str, list[int]]:
    return {key: list(value.shape) for key, value in weights.items()}


def state_of(content: dict[Any, Any]) -> dict[Any, Any]:
    """The dictionary of tensors. `dict.get`, because a file can give an OrderedDict an attribute `get` of its own."""
    for _ in range(2):
        inner = [dict.get(content, key) for key in STATE_KEYS]
        content = next((value for value in inner if isinstance(value, dict)), content)
    return content


def bare_name(key: str, asked: Demands) -> str:
    """The model's own name for this tensor; a prefix goes only where the model does not have it itself."""
    while key not in asked.expected and key not in asked.counters and key.startswith(PREFIXES):
        key = key.split(".", 1)[1]
    return key


def fill_tied(weights: dict[str, torch.Tensor], groups: Iterable[list[str]]) -> None:
    """A tensor that the model has under several names may be in the file under one."""
    for names in groups:
        there = next((weights[name] for name in names if name in weights), None)
        if there is not None:
            weights.update({name: there for name in names if name not in weights})


def mismatch(name: str, shapes: Mapping[str, list[int]], model: str, request: Request) -> CheckpointError:
    """Names the first three of what is missing and unknown, and all layouts that it fits instead, as no file tells their strides."""
    expected = request.models[model].expected
    missing = [key for key in expected if key not in shapes]
    unknown = [key for key in shapes if key not in expected]
    told = [counted(keys, what) for keys, what in ((missing, "missing"), (unknown, "unknown")) if keys]
    if not told:
        wrong = next(key for key, shape in expected.items() if shapes[key] != shape)
        told = [f"'{wrong}' has shape {shapes[wrong]}, the model's has {expected[wrong]}"]
    without = {key: shape for key, shape in shapes.items() if not is_counter(key)}
    fits = [layout for layout, wanted in request.layouts.items() if wanted == without]
    cures = ("choose its model", f"it fits the layout '{fits[0]}': choose that" if fits else "")
    cure = cures[len(fits)] if len(fits) < 2 else f"it fits the layouts {and_(fits)}: choose the one it was trained with"
    which = f" the layout '{model}'" if model else ""
    return refusal(CheckpointMismatchError, name, f"does not fit{which}: {', '.join(told)}", cure)


def and_(names: Sequence[str]) -> str:
    """'a', 'b' and 'c'."""
    *first, last = [f"'{name}'" for name in names]
    return f"{', '.join(first)} and {last}" if first else last


def counted(keys: Sequence[str], what: str) -> str:
    return f"{len(keys)} key{'' if len(keys) == 1 else 's'} {what} ({', '.join(keys[:3])})"


def canonical(
    name: str, weights: dict[str, torch.Tensor], asked: Demands, records: frozenset[str] | None
) -> dict[str, torch.Tensor]:
    """The weights in the model's formats (16-bit ones as float32), contiguous, finite, in order of name. Empties `weights`."""
    for first, *others in asked.tied:
        if any(not torch.equal(weights[first], weights[other]) for other in others):
            told = f"'{first}' and '{others[0]}' differ, but are one tensor in the model"
            raise refusal(CheckpointMismatchError, name, told, "choose its model")
    proven: set[int] = set()  # views of one storage, which may be large, are looked up once
    result = {}
    for key in sorted(weights):
        value = weights.pop(key).detach()
        check_tensor(name, key, value, asked.dtypes[key])
        place = value.untyped_storage().data_ptr()
        if records is not None and place not in proven and not comes_from(value, records):
            raise unsafe(name, f"the bytes of '{key[:60]}' are not in the file", "save the checkpoint again")
        proven.add(place)
        if value.is_floating_point():
            value = value.to(torch.float64 if asked.dtypes[key] == "F64" else torch.float32)
            if not bool(torch.isfinite(value).all()):
                cure = "choose a checkpoint from before training diverged"
                raise refusal(CheckpointError, name, f"'{key[:60]}' holds NaN or infinity", cure)
        result[key] = value.contiguous()
    return result


def check_tensor(name: str, key: str, value: torch.Tensor, dtype: str) -> None:
    """The tensor is dense and within its storage, and its numbers are of the model's kind."""
    sound = value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized
    if not sound or value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise unsafe(name, f"'{key[:60]}' has fewer bytes than its shape says", "save the checkpoint again")
    code = CODES.get(value.dtype)
    if code not in FLOATS if dtype in FLOATS else code != dtype:
        wanted = next(known for known, code in CODES.items() if code == dtype)
        told = f"'{key[:60]}' holds {value.dtype} where the model has {wanted}".replace("torch.", "")
        raise refusal(CheckpointError, name, told, "save the weights as the model has them")


def keep(weights: Mapping[str, torch.Tensor], store: Path | None) -> str:
    """The weights are in the store, if there is one, as safetensors; returns the SHA-256 of those bytes, which is their name."""
    seal = hashlib.sha256()
    for piece in safetensors_pieces(weights):
        seal.update(piece)
    if store is None:
        return seal.hexdigest()
    place = store / f"{seal.hexdigest()}.safetensors"
    try:
        if not place.is_file() or file_digest(place) != seal.hexdigest():
            write_whole(place, safetensors_pieces(weights))
    except OSError as failure:
        raise WorkspaceError(f"The folder '{store.name}' cannot be written ({failure.strerror}); check its rights.") from failure
    return seal.hexdigest()


def safetensors_pieces(weights: Mapping[str, torch.Tensor]) -> Iterator[bytes | memoryview]:
    """The bytes of a safetensors file, tensor by tensor, so that no second copy of all weights is in memory.

    Written here and not by the library, because the identity of a checkpoint must not change with a library's version.
    Widest numbers first, then by name, as the library orders them.
    """
    ordered = sorted(weights, key=lambda key: (-weights[key].element_size(), key))
    header: dict[str, Any] = {}
    end = 0
    for key in ordered:
        start, end = end, end + weights[key].numel() * weights[key].element_size()
        header[key] = {"dtype": CODES[weights[key].dtype], "shape": list(weights[key].shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for key in ordered:
        if weights[key].numel():
            yield bytes_of(weights[key])


# ---- the child process ------------------------------------------------------------------------------------------------------


def answer_to(path: Path, request: Request) -> dict[str, Any]:
    """What became of this file; an error of the machine is not blamed on it."""
    try:
        return take_in(path, request)
    except CheckpointError as failure:
        told = failure
    except DiskFullError as failure:
        return {"disk_full": str(failure)}
    except MachineError as failure:
        return {"machine": str(failure)}
    except MemoryError:
        told = unsafe(path.name, "it asks for far more memory than it has bytes", "save the model's state dict alone")
    except Exception as failure:
        told = unsafe(path.name, f"it cannot be taken in ({type(failure).__name__})", "save the model's state dict alone")
    return {"refused": str(told), "kind": type(told).__name__}


def lock_down() -> None:
    """No core files with a user's weights in them, no privileges to be gained, one thread, nothing left for torch to load lazily."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    torch.set_num_threads(1)
    buffer = io.BytesIO()
    torch.save({"weight": torch.zeros(8, 8)}, buffer)
    weight = torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)["weight"]
    bool(torch.isfinite(weight.to(torch.float64)).all())
    safetensors.torch.load(safetensors.torch.save({"weight": weight}))


def serve() -> None:
    """The requests on stdin are answered, file by file."""
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < OLDEST_TORCH:
        sys.exit(
            f"torch {torch.__version__} opens hostile checkpoints unsafely; install torch >= {OLDEST_TORCH[0]}.{OLDEST_TORCH[1]}"
        )
    lock_down()
    for line in sys.stdin:
        request = request_of(json.loads(line))
        print("{}", flush=True)
        for path in request.paths:
            print(json.dumps(answer_to(Path(path), request)), flush=True)


def request_of(values: dict[str, Any]) -> Request:
    models = {name: Demands(**model) for name, model in values["models"].items()}
    return Request(**{**values, "models": models})


if __name__ == "__main__":
    serve()
