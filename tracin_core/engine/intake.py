"""From an untrusted file to plain containers and tensors, or to one sentence of refusal. Runs in the limited child of `checkpoints.py`.

Nothing in a file is executed. It is read once, so what was checked is what is loaded; memory and processor time are limited before it is
read. Formats are told apart by content. What a file may contain is an exact list of pickle globals and opcodes; everything else is named
and refused. There is no second try with weaker checks.
"""

import hashlib
import io
import math
import os
import pickletools
import re
import resource
import stat
import struct
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import safetensors.torch
import torch

from tracin_core.errors import CheckpointError, UnsafeCheckpointError

SIZE_LIMIT: Final = 8 * 2**30
PICKLE_LIMIT: Final = 16 * 2**20
STEP_LIMIT: Final = 1_000_000
HEADER_LIMIT: Final = 16 * 2**20
SPARE_MEMORY: Final = 256 * 2**20
SENTENCE_LIMIT: Final = 200 - len("refused: ")  # which `inspect` writes before it
TEXT_LIMIT, ENTRY_LIMIT, DEPTH_LIMIT = 1000, 1000, 4
EPOCH_IN_NAME: Final = re.compile(r"(?<!\d)(\d{1,9})(?:\.pth)?\.\w+$", re.ASCII)  # also of .pth.tar
LIGHTNING_NAME: Final = re.compile(r"epoch=(\d{1,9})(?!\d)", re.ASCII)
LIGHTNING: Final = "pytorch-lightning_version"

OPTIMIZER_KEYS: Final = ("optimizer_state_dict", "optimizer", "optimizer_states")
ARGUMENT_KEYS: Final = ("args", "hyper_parameters", "hparams", "config")

LEGACY_MAGIC: Final = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
STORAGES: Final = ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
DTYPES: Final = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
ALLOWED_GLOBALS: Final = frozenset(
    {"collections OrderedDict", "collections Counter", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"}
    | {"torch Size", "torch device", "__builtin__ set", "builtins set", "_codecs encode"}
    | {f"torch {name}Storage" for name in STORAGES}
    | {f"torch {name}" for name in DTYPES}
)
ALLOWED_OPCODES: Final = frozenset(
    {"PROTO", "STOP", "MARK", "GLOBAL", "REDUCE", "BUILD", "BINPERSID", "EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE",
     "EMPTY_SET", "SETITEM", "SETITEMS", "APPEND", "APPENDS", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "NONE", "NEWTRUE",
     "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING", "BINGET",
     "LONG_BINGET", "BINPUT", "LONG_BINPUT"}
)  # fmt: skip

FILE_ITSELF: Final = "put the file itself into the folder"
SAVE_AGAIN: Final = "save the checkpoint again with torch.save"
SAVE_PLAIN: Final = "save plain tensors: torch.save(model.state_dict(), file)"
SAVE_ANEW: Final = "load it where you trust it and save its state dict again with torch >= 1.6"
SAVE_INSTEAD: Final = {  # by the package of what a pickle asks for
    "numpy": "save its numbers as float(x) and its arrays as torch.as_tensor(x), or leave them out",
    "argparse": "save vars(args) instead of args",
    "pathlib": "save str(path) instead of the path",
    "omegaconf": "save OmegaConf.to_container(config) instead of the configuration",
}


def refusal(kind: type[CheckpointError], name: str, reason: str, cure: str) -> CheckpointError:
    """One line of at most 200 characters: the file, the reason, the cure."""
    shown, reason, cure = shown_name(name), printable(reason), printable(cure)
    room = SENTENCE_LIMIT - len(shown) - len(cure) - len("'': ; .")
    return kind(f"'{shown}': {reason if len(reason) <= room else reason[: room - 3] + '...'}; {cure}.")


def shown_name(name: str) -> str:
    """A file's name as a sentence has room for it."""
    name = printable(name)
    return name if len(name) <= 48 else f"{name[:20]}...{name[-20:]}"


def printable(text: str) -> str:
    """The text on one line; whatever a terminal or a page could act on is written as `?`."""
    return "".join(character if character.isprintable() else "?" for character in " ".join(text.split()))


def unsafe(name: str, reason: str, cure: str) -> CheckpointError:
    return refusal(UnsafeCheckpointError, name, reason, cure)


# ---- the file ---------------------------------------------------------------------------------------------------------------


def read_once(path: Path, cpu_seconds: int) -> bytes:
    """The bytes of a regular file that is not a link; from here on this process is limited by the file's size."""
    if ".." in path.parts:
        raise refusal(CheckpointError, path.name, "its path leads out of a folder by '..'", "give the path without it")
    if "\0" in str(path):
        raise refusal(CheckpointError, path.name, "its name holds a NUL character, which no file's does", FILE_ITSELF)
    try:
        require_regular(path.name, path.lstat())  # before it is opened: to open a device is to act on it
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as failure:
        raise refusal(CheckpointError, path.name, f"it cannot be read ({failure.strerror})", FILE_ITSELF) from failure
    try:
        status = os.fstat(handle)
        require_regular(path.name, status)
        if status.st_size == 0:
            raise refusal(CheckpointError, path.name, "it is empty, as after an interrupted copy", "copy or save it again")
        if status.st_size > SIZE_LIMIT:
            reason = f"it has {status.st_size} bytes, more than the limit of {SIZE_LIMIT}"
            raise refusal(CheckpointError, path.name, reason, "save the model's state dict without the rest")
        limit_resources(status.st_size, cpu_seconds)
        with os.fdopen(handle, "rb", closefd=False) as file:
            return file.read(status.st_size)
    finally:
        os.close(handle)


def require_regular(name: str, status: os.stat_result) -> None:
    """It is a file with bytes of its own: no link, folder, pipe, socket or device."""
    if stat.S_ISLNK(status.st_mode):
        raise refusal(CheckpointError, name, "it is a symbolic link", FILE_ITSELF)
    if not stat.S_ISREG(status.st_mode):
        raise refusal(CheckpointError, name, "it is not a regular file", FILE_ITSELF)


def limit_resources(size: int, cpu_seconds: int) -> None:
    """From here on, this process may take three times the file and 256 MiB more memory, and so much more processor time."""
    spent = resource.getrusage(resource.RUSAGE_SELF)
    lower_limit(resource.RLIMIT_CPU, math.ceil(spent.ru_utime + spent.ru_stime) + cpu_seconds)
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except OSError:
        return  # no /proc: macOS does not enforce an address-space limit either
    lower_limit(resource.RLIMIT_AS, pages * resource.getpagesize() + 3 * size + SPARE_MEMORY)


def lower_limit(kind: int, value: int) -> None:
    """The soft limit is this value, or the machine's own where that is lower; the next file of the folder sets its own."""
    _, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


# ---- the format -------------------------------------------------------------------------------------------------------------


def load_checked(name: str, raw: bytes) -> tuple[dict[Any, Any], frozenset[str] | None]:
    """The file's content as plain containers and tensors, and the SHA-256 of each record that a tensor's bytes may come from.

    The second is None where the format's own reader places every tensor (safetensors).

    Raises:
        UnsafeCheckpointError: it is not plain weights in a format that is read here.
    """
    if raw[:4] == b"PK\x03\x04":
        records = check_archive(name, raw)
        return load_plain(name, raw), records
    refuse_look_alikes(name, raw)
    if name.endswith(".safetensors") or raw[8:9] == b"{":
        return load_safetensors(name, raw), None
    raise unsafe(name, "it is neither a torch checkpoint nor safetensors", "save the model's state dict with torch.save")


def refuse_look_alikes(name: str, raw: bytes) -> None:
    """What people often have instead of weights gets its own sentence."""
    text = raw[:200].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(b"version https://git-lfs"):
        raise unsafe(name, "it is a Git LFS pointer, not the weights", "run 'git lfs pull' and choose again")
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<!--", b"<head")):
        raise unsafe(name, "it is an HTML page, probably a failed download", "download the file again")
    if raw.startswith(LEGACY_MAGIC) or raw[257:262] == b"ustar":
        raise unsafe(name, "it is in the format of torch before 1.6, a pickle that can run code", SAVE_ANEW)
    if raw[:1] == b"\x80" or (raw[8:9] != b"{" and raw[:1] in b"c(}]ilF0" and raw.rstrip().endswith(b".")):
        named = next(iter(walked(raw[:PICKLE_LIMIT])[0]), None)
        asks = "" if named is None else f" (this one asks for '{named}')"
        raise unsafe(name, f"it is a bare pickle, which can run code{asks}", SAVE_ANEW)


def load_safetensors(name: str, raw: bytes) -> dict[Any, Any]:
    again = "save it again with safetensors"
    if int.from_bytes(raw[:8], "little") > HEADER_LIMIT:
        raise unsafe(name, "its safetensors header is longer than 16 MiB", again)
    try:
        return dict(safetensors.torch.load(raw))
    except MemoryError:
        raise
    except Exception as failure:
        raise unsafe(name, f"it is not valid safetensors ({failure})", again) from failure


# ---- torch's archive --------------------------------------------------------------------------------------------------------


def check_archive(name: str, raw: bytes) -> frozenset[str]:
    """Every record is stored, whole, in its own place, and the pickle asks for nothing but tensors and containers.

    Returns:
        The SHA-256 of every record of tensor bytes.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            reason = fault_of_records(archive) or fault_of_places(archive, raw) or fault_of_bytes(archive)
            if reason is not None:
                raise unsafe(name, reason, SAVE_AGAIN)
            check_pickle(name, archive.read(f"{root_of(archive)}/data.pkl"))
            place = f"{root_of(archive)}/data/"
            return frozenset(digest_of(archive, record) for record in archive.infolist() if record.filename.startswith(place))
    except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError, OSError, RuntimeError, struct.error) as failure:
        raise unsafe(name, f"the archive is damaged ({failure})", SAVE_AGAIN) from failure


def root_of(archive: zipfile.ZipFile) -> str:
    return archive.infolist()[0].filename.split("/")[0]


def digest_of(archive: zipfile.ZipFile, record: zipfile.ZipInfo) -> str:
    with archive.open(record) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def fault_of_records(archive: zipfile.ZipFile) -> str | None:
    """What the list of an archive written by `torch.save` never says; None for a sound one."""
    records = archive.infolist()
    names = [record.filename for record in records]
    if not names:
        return "its archive is empty"
    if any("/code/" in entry or entry.endswith("/constants.pkl") for entry in names):
        return "it is a TorchScript program, not weights: save model.state_dict() instead"
    if len({entry.lower() for entry in names}) != len(names):  # torch's reader does not tell cases apart
        return "it holds two records of one name"
    if any(".." in entry.split("/") or entry.startswith("/") or "\\" in entry or "\0" in entry for entry in names):
        return "a record's name leads out of the archive"
    if len({entry.split("/")[0] for entry in names}) != 1 or f"{root_of(archive)}/data.pkl" not in names:
        return "it has no data.pkl beside its tensors, so torch.save did not write it"
    if any(r.compress_type != zipfile.ZIP_STORED or r.file_size != r.compress_size or r.flag_bits & 1 for r in records):
        return "a record is compressed or encrypted, which torch.save never does"
    if archive.getinfo(f"{root_of(archive)}/data.pkl").file_size > PICKLE_LIMIT:
        return "its data.pkl is larger than 16 MiB"
    return None


def fault_of_places(archive: zipfile.ZipFile, raw: bytes) -> str | None:
    """Records lie one after the other from the first byte to the list, and the list reaches to the end of the file.

    So there is one way only to read the archive: two readers that look for its list in different ways find the same.
    """
    start, size, count, end = central_list(raw)
    if start != archive.start_dir or start + size != end or count != len(archive.infolist()):
        return "its list of records is not where the file ends, so two readers could see two contents"
    at = 0
    for record in sorted(archive.infolist(), key=lambda record: record.header_offset):
        name_length, extra_length = struct.unpack("<HH", raw[record.header_offset + 26 : record.header_offset + 30])
        if not at <= record.header_offset <= at + (24 if at else 0):  # 24: the longest data descriptor
            return "its records overlap, or hide bytes between them"
        at = record.header_offset + 30 + name_length + extra_length + record.file_size
    return None if at <= start <= at + 24 else "its records overlap, or claim more bytes than the file has"


def central_list(raw: bytes) -> tuple[int, int, int, int]:
    """Offset, length and number of entries of the archive's list as its last 22 bytes say, and where the closing records begin."""
    end = len(raw) - 22
    signature, _, _, _, count, size, start, comment = struct.unpack("<4s4H2LH", raw[end:])
    if signature != b"PK\x05\x06" or comment:
        raise zipfile.BadZipFile("it has a comment or bytes after its end")
    if raw[end - 20 : end - 16] != b"PK\x06\x07":
        return start, size, count, end
    long_end = end - 20 - 56
    signature, _, _, _, _, _, _, long_count, long_size, long_start = struct.unpack("<4sQ2H2L4Q", raw[long_end : end - 20])
    (place,) = struct.unpack("<Q", raw[end - 12 : end - 4])
    agree = all(
        short in (long, limit)
        for short, long, limit in ((count, long_count, 2**16 - 1), (size, long_size, 2**32 - 1), (start, long_start, 2**32 - 1))
    )
    if signature != b"PK\x06\x06" or place != long_end or not agree:
        raise zipfile.BadZipFile("its closing records contradict each other")
    return long_start, long_size, long_count, long_end


def fault_of_bytes(archive: zipfile.ZipFile) -> str | None:
    """A record whose bytes are not those that were saved; torch itself does not look."""
    damaged = archive.testzip()
    if damaged is not None:
        return f"record '{damaged[-24:]}' is damaged (its checksum or its name is wrong)"
    order = f"{root_of(archive)}/byteorder"
    if order in archive.namelist() and archive.read(order) != b"little":
        return "it was saved on a big-endian machine"
    return None


# ---- the pickle -------------------------------------------------------------------------------------------------------------


def check_pickle(name: str, pickle: bytes) -> None:
    """The opcodes are walked, none executed; a global or opcode outside the lists is named."""
    foreign, fault = walked(pickle)
    if foreign:
        cure = SAVE_INSTEAD.get(foreign[0].split(".")[0], SAVE_PLAIN)
        raise unsafe(name, f"it asks for '{foreign[0][:60]}', which plain weights do not need", cure)
    if fault is not None:
        raise unsafe(name, fault, SAVE_PLAIN)


def walked(pickle: bytes) -> tuple[list[str], str | None]:
    """The globals outside the list that the pickle asks for, as `module.name`, as far as it can be read; and the first other fault."""
    foreign: list[str] = []
    fault: str | None = None
    texts: list[str] = ["", ""]
    try:
        for step, (opcode, argument, _) in enumerate(pickletools.genops(pickle)):
            if step > STEP_LIMIT:
                return foreign, fault or f"its pickle has more than {STEP_LIMIT} steps"
            fault = fault or fault_of_step(opcode.name, argument)
            if opcode.name == "STACK_GLOBAL":
                foreign.append(".".join(texts))
            elif opcode.name in ("GLOBAL", "INST") and (argument not in ALLOWED_GLOBALS or opcode.name == "INST"):
                foreign.append(str(argument).replace(" ", "."))
            elif "UNICODE" in opcode.name or "STRING" in opcode.name:
                texts = [texts[1], str(argument)]
    except Exception as failure:
        fault = fault or f"its pickle is damaged ({type(failure).__name__})"
    return foreign, fault


def fault_of_step(opcode: str, argument: Any) -> str | None:
    if opcode not in ALLOWED_OPCODES:
        return f"its pickle uses {opcode}, which plain weights do not need"
    if opcode == "LONG_BINPUT" and int(argument or 0) > STEP_LIMIT:
        return "its pickle numbers its parts without bound"
    return None


def load_plain(name: str, raw: bytes) -> dict[Any, Any]:
    try:
        content = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except RuntimeError as failure:  # torch's own words name records and sizes
        told = f"torch cannot load it as plain weights ({str(failure)[:80]})"
        raise unsafe(name, told, SAVE_PLAIN) from failure
    except Exception as failure:  # nine types in practice, with texts like `9` or advice to trust the file
        raise unsafe(name, f"its pickle contradicts itself ({type(failure).__name__})", SAVE_PLAIN) from failure
    if not isinstance(content, dict):
        raise unsafe(name, f"it holds a {type(content).__name__} where a dictionary is expected", SAVE_PLAIN)
    return content


def comes_from(value: torch.Tensor, records: frozenset[str]) -> bool:
    """The tensor's storage is byte for byte one of the file's records: no memory that was never written, no swapped bytes."""
    storage = value.untyped_storage()
    if not storage.nbytes():
        return True
    return hashlib.sha256(bytes_of(torch.empty(0, dtype=torch.uint8).set_(storage))).hexdigest() in records


def bytes_of(values: torch.Tensor) -> memoryview:
    """The bytes of a contiguous tensor in row order, without a copy."""
    return values.reshape(-1).view(torch.uint8).numpy().data


# ---- what a file records beside its weights -----------------------------------------------------------------------------------


def facts_of(name: str, content: dict[Any, Any]) -> dict[str, Any]:
    """Epoch, rates, losses and arguments in plain values; None where the file says nothing."""
    recorded, in_name = recorded_epoch(content), epoch_in_name(name)
    epoch = in_name if recorded is None else recorded
    if epoch is None:
        told = "neither it nor its name says which epoch it is"
        raise refusal(CheckpointError, name, told, "name it model_epoch_<N>.pt")
    optimizers = optimizers_of(content)
    arguments = first_of(content, ARGUMENT_KEYS)
    return {
        "epoch": epoch,
        "recorded_epoch": recorded,
        "learning_rate": learning_rate(optimizers),
        "optimizer": optimizer_name(optimizers),
        "train_loss": number(first_of(content, ("train_loss_main", "train_loss"))),
        "validation_loss": number(first_of(content, ("val_loss_main", "val_loss"))),
        "train_accuracy": number(dict.get(content, "train_accuracy")),
        "validation_accuracy": number(dict.get(content, "val_accuracy")),
        "rate_sum": number(dict.get(content, "rate_sum")),
        "descent": descent(optimizers),
        "arguments": {plain_text(str(key)): plain(value) for key, value in dict.items(arguments)}
        if isinstance(arguments, dict)
        else {},
    }


def first_of(content: dict[Any, Any], keys: Iterable[str]) -> Any:
    """What stands under the first of these keys that has a value."""
    return next((value for key in keys if (value := dict.get(content, key)) is not None), None)


def recorded_epoch(content: dict[Any, Any]) -> int | None:
    """How many epochs the training had begun, as the file records it. Lightning numbers the first one 0, and 0 is here before any step."""
    epoch, steps = dict.get(content, "epoch"), dict.get(content, "global_step")
    if type(epoch) is not int or not 0 <= epoch < 10**9:
        return None
    return epoch + 1 if LIGHTNING in content and type(steps) is int and steps > 0 else epoch


def epoch_in_name(name: str) -> int | None:
    """The number at the end of the name; in Lightning's `epoch=4-step=100.ckpt` the fifth epoch."""
    if (lightning := LIGHTNING_NAME.search(name)) is not None:
        return int(lightning.group(1)) + 1
    numbered = EPOCH_IN_NAME.search(name)
    return None if numbered is None else int(numbered.group(1))


def number(value: Any) -> float | None:
    """A finite number as a float; None for everything else."""
    if isinstance(value, torch.Tensor) and value.shape == () and value.layout == torch.strided:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > sys.float_info.max:
        return None
    return float(value) if math.isfinite(value) else None


def plain(value: Any, depth: int = 0) -> Any:
    """The value as JSON can hold it; what is too large, too deep or of another kind is named by its type, not dropped."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return plain_text(value)
    if isinstance(value, int | float | torch.Tensor):
        finite = number(value)
        return type(value).__name__ if finite is None else value if isinstance(value, int | float) else finite
    if isinstance(value, dict) and len(value) <= ENTRY_LIMIT and depth < DEPTH_LIMIT:
        return {plain_text(str(key)): plain(inner, depth + 1) for key, inner in dict.items(value)}
    if isinstance(value, list | tuple) and len(value) <= ENTRY_LIMIT and depth < DEPTH_LIMIT:
        return [plain(inner, depth + 1) for inner in value]
    return type(value).__name__


def plain_text(text: str) -> str:
    """Text that UTF-8 can hold, of bounded length."""
    return text[:TEXT_LIMIT].encode("utf-8", "backslashreplace").decode("utf-8")


def optimizers_of(content: dict[Any, Any]) -> list[dict[Any, Any]]:
    """The states of the optimisers, of which all but a few trainings have one."""
    found = first_of(content, OPTIMIZER_KEYS)
    return [state for state in (found if isinstance(found, list) else [found]) if isinstance(state, dict)]


def groups_of(optimizers: Iterable[dict[Any, Any]]) -> list[dict[Any, Any]]:
    """The settings of every group of parameters of these optimisers."""
    lists = [dict.get(optimizer, "param_groups") for optimizer in optimizers]
    return [group for groups in lists if isinstance(groups, list) for group in groups if isinstance(group, dict)]


def learning_rate(optimizers: Iterable[dict[Any, Any]]) -> float | None:
    """The rate in force for every parameter; None where groups of them have different ones, which no single number tells."""
    rates = {number(dict.get(group, "lr")) for group in groups_of(optimizers)}
    return rates.pop() if len(rates) == 1 else None


def descent(optimizers: Iterable[dict[Any, Any]]) -> dict[str, float]:
    """Momentum, dampening, weight decay and Nesterov (0 or 1) of the first parameter group, those that it records."""
    group = next(iter(groups_of(optimizers)), {})
    values = {name: dict.get(group, name) for name in ("momentum", "dampening", "weight_decay", "nesterov")}
    found = {name: float(value) if isinstance(value, bool) else number(value) for name, value in values.items()}
    return {name: value for name, value in found.items() if value is not None}


def optimizer_name(optimizers: Iterable[dict[Any, Any]]) -> str | None:
    """Adam or SGD where the optimiser's state shows it: running averages, a momentum alone, or the settings that only SGD has.

    Never guessed further.
    """
    states = [dict.get(optimizer, "state") for optimizer in optimizers]
    entries = [entry for state in states if isinstance(state, dict) for entry in dict.values(state) if isinstance(entry, dict)]
    if any("exp_avg" in entry for entry in entries):
        return "Adam"
    groups = groups_of(optimizers)
    of_sgd = bool(groups) and all("dampening" in group and "nesterov" in group and "betas" not in group for group in groups)
    return "SGD" if of_sgd or any(set(entry) == {"momentum_buffer"} for entry in entries) else None
