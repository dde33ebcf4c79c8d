"""Hostile and malformed checkpoint files, generated: each is named by what is wrong with it and comes with what its refusal must say.

Nothing here is a payload that does harm: what would run code would only make the marker file.
"""

import argparse
import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

State = dict[str, torch.Tensor]
GIGABYTE = 2**30


class Call:
    """An object whose pickle asks for a call of this function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.function, self.arguments


class Stranger(nn.Linear):
    """A class that only its author has."""


def saved(content: Any, **options: Any) -> bytes:
    """What `torch.save` writes."""
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def records_of(raw: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def archive_of(records: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def changed(raw: bytes, **records: bytes) -> bytes:
    """The archive with other contents of some records, with correct checksums."""
    return archive_of(
        {**records_of(raw), **{f"archive/{name.replace('__', '/').replace('_pkl', '.pkl')}": new for name, new in records.items()}}
    )


# ---- pickles written by hand ------------------------------------------------------------------------------------------------


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def whole(value: int) -> bytes:
    coded = value.to_bytes((value.bit_length() + 8) // 8, "little", signed=True)
    return b"\x8a" + bytes([len(coded)]) + coded


def several(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(whole, values)) + b"t"


def tensor(shape: tuple[int, ...], stride: tuple[int, ...], numbers: int, *, offset: int = 0, record: str = "0") -> bytes:
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(record) + text("cpu") + whole(numbers) + b"tQ"
    tail = b"\x89ccollections\nOrderedDict\n)RtR"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + whole(offset) + several(shape) + several(stride) + tail


def pickle_of(value: bytes, key: str = "classifier.2.bias") -> bytes:
    return b"\x80\x02}" + text(key) + value + b"s."


def by_hand(value: bytes, data: bytes = b"\0\0\x80?", **more: bytes) -> bytes:
    records = {
        "archive/data.pkl": pickle_of(value),
        "archive/byteorder": b"little",
        "archive/data/0": data,
        "archive/version": b"3\n",
    }
    return archive_of({**records, **more})


def doubling(times: int) -> bytes:
    """A text that is written in hexadecimal again and again: 2 to the power of `times`."""
    value = b"c_codecs\nencode\n" + text("a" * 1024) + text("utf-8") + b"\x86R"
    for _ in range(times):
        value = b"c_codecs\nencode\n" + value + text("hex") + b"\x86R"
    return value


def same_hash(count: int) -> bytes:
    """A set of numbers with one hash: quadratic time."""
    numbers = b"".join(whole(index * (2**61 - 1)) for index in range(1, count + 1))
    return b"c__builtin__\nset\n](" + numbers + b"e\x85R"


# ---- safetensors written by hand --------------------------------------------------------------------------------------------


def safetensors_of(header: Any, data: bytes = b"", pad: int = 0) -> bytes:
    coded = header if isinstance(header, bytes) else json.dumps(header).encode()
    coded += b" " * pad
    return len(coded).to_bytes(8, "little") + coded + data


def entry(shape: list[int], offsets: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


# ---- the files --------------------------------------------------------------------------------------------------------------


def hostile_files(state: State, marker: Path) -> Iterator[tuple[str, bytes, str]]:
    """File name, bytes, and words of the refusal. `state` is the good state dict that most of them are made from."""
    yield from pickles_that_call(state, marker)
    yield from archives_that_lie(state)
    yield from pickles_that_lie(state)
    yield from weights_that_do_not_fit(state)
    yield from other_formats(state)
    yield from safetensors_that_lie(state)


def pickles_that_call(state: State, marker: Path) -> Iterator[tuple[str, bytes, str]]:
    touch = f"touch {marker}"
    for function, arguments, words in (
        (os.system, (touch,), "'posix.system'"),
        (exec, (f"open({str(marker)!r}, 'w')",), "'__builtin__.exec'"),
        (eval, (f"open({str(marker)!r}, 'w')",), "'__builtin__.eval'"),
        (open, (str(marker), "w"), "'io.open'"),
        (os.mkdir, (str(marker),), "'posix.mkdir'"),
        (getattr, (marker, "touch"), "'__builtin__.getattr'"),
        (bytearray, (20 * GIGABYTE,), "'__builtin__.bytearray'"),
        (torch.Tensor, (100_000, 100_000), "'torch.Tensor'"),
        (torch.UntypedStorage, (20 * GIGABYTE,), "UntypedStorage'"),
        (torch.load, (str(marker),), "'torch.serialization.load'"),
    ):
        yield f"call_{function.__name__}_1.pt", saved({**state, "extra": Call(function, *arguments)}), words
    yield "call_beside_1.pt", saved({"model_state_dict": state, "args": Call(os.system, touch)}), "'posix.system'"
    yield "call_protocol4_1.pt", saved(Call(os.system, touch), pickle_protocol=4), "'posix.system'"
    yield "whole_module_1.pt", saved(Stranger(2, 2)), "Stranger'"
    yield "bare_pickle_1.pt", pickle.dumps(Call(os.system, touch)), "'posix.system'"
    yield "text_pickle_1.pt", b"cos\nsystem\n(S'" + touch.encode() + b"'\ntR.", "'os.system'"
    yield "legacy_1.pt", saved(state, _use_new_zipfile_serialization=False), "before 1.6"
    yield "legacy_call_1.pt", saved(Call(os.system, touch), _use_new_zipfile_serialization=False), "before 1.6"
    yield "inst_1.pt", changed(saved(state), data_pkl=b"(S'" + touch.encode() + b"'\nios\nsystem\n."), "'os.system'"
    yield "extension_1.pt", changed(saved(state), data_pkl=b"\x80\x02\x82\x01."), "EXT1"
    yield "newobj_1.pt", changed(saved(state), data_pkl=b"\x80\x02ccollections\nOrderedDict\n)\x81."), "NEWOBJ"
    for opcode, form in (
        ("EXT2", b"\x83\x01\0"),
        ("EXT4", b"\x84\x01\0\0\0"),
        ("PERSID", b"P0\n"),
        ("BYTEARRAY8", b"\x96" + bytes(8)),
    ):
        yield f"opcode_{opcode}_1.pt", changed(saved(state), data_pkl=b"\x80\x02" + form + b"."), opcode
    yield "obj_1.pt", changed(saved(state), data_pkl=b"(cos\nsystem\n" + text(touch) + b"o."), "'os.system'"
    yield "newobj_ex_1.pt", changed(saved(state), data_pkl=b"ccollections\nOrderedDict\n)}\x92."), "NEWOBJ_EX"
    stack = text("os") + text("system") + b"\x93" + text(touch) + b"\x85R."
    yield "stack_global_1.pt", changed(saved(state), data_pkl=b"\x80\x04" + stack), "'os.system'"
    dotted = text("torch") + text("serialization.os.system") + b"\x93" + text(touch) + b"\x85R."
    yield "dotted_1.pt", changed(saved(state), data_pkl=b"\x80\x04" + dotted), "'torch.serialization.os.system'"
    for protocol in (0, 1, 2, 3, 4, 5):
        yield f"bare_pickle_of_{protocol}_1.pt", pickle.dumps(Call(os.system, touch), protocol), "bare pickle"
    yield "set_state_1.pt", changed(saved(state), data_pkl=setting_state(touch)), "'os.system'"
    yield "nested_1.pt", saved({**state, "args": {"a": [({"b": Call(os.system, touch)},)]}}), "'posix.system'"
    yield "numpy_number_1.pt", saved({"model": state, "val_loss": np.float64(0.5)}), "scalar'"
    yield "numpy_random_state_1.pt", saved({"model": state, "rng": np.random.RandomState(0).get_state()}), "or leave them out"
    yield "namespace_1.pt", saved({"model": state, "args": argparse.Namespace(margin=10.0)}), "save vars(args)"
    yield "path_1.pt", saved({"model": state, "args": {"root": marker}}), "save str(path)"
    yield "complex_1.pt", saved({key: value.to(torch.complex64) for key, value in state.items()}), "ComplexFloatStorage"
    yield "sparse_1.pt", saved({"classifier.2.bias": torch.ones(3).to_sparse()}), "_rebuild_sparse_tensor"
    yield "meta_1.pt", saved({"classifier.2.bias": torch.ones(1, device="meta")}), "_rebuild_meta_tensor"


def setting_state(touch: str) -> bytes:
    """An allowed container, whose state is then set to what a call returns."""
    return b"\x80\x02ccollections\nOrderedDict\n)Rcos\nsystem\n" + text(touch) + b"\x85Rb."


def archives_that_lie(state: State) -> Iterator[tuple[str, bytes, str]]:
    good = saved(state)
    records = records_of(good)
    bomb = {**records, "archive/data/0": b"\0" * (64 * 2**20)}
    yield "deflated_bomb_1.pt", archive_of(bomb, zipfile.ZIP_DEFLATED), "compressed"
    yield "cut_half_1.pt", good[: len(good) // 2], "archive is damaged"
    yield "cut_one_byte_1.pt", good[:-1], "archive is damaged"
    for part in (1, 10, 30, 100):
        yield f"cut_after_{part}_1.pt", good[:part], "archive is damaged" if part > 4 else "neither"
    for at, name in ((good.rfind(b"PK\x05\x06") + 16, "place_of_list"), (good.find(b"PK\x01\x02") + 16, "checksum_in_list")):
        yield f"flipped_{name}_1.pt", good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :], "damaged"
    yield "other_local_name_1.pt", good.replace(b"archive/data/0", b"archive/data/x", 1), "its name is wrong"
    yield "more_bytes_1.pt", good + b"\0" * 64, "comment or bytes after its end"
    yield "two_archives_1.pt", good + good, "contradict each other"
    data = good.find(records["archive/data/0"])
    yield "flipped_bit_1.pt", good[:data] + bytes([good[data] ^ 1]) + good[data + 1 :], "its checksum"
    yield "twice_1.pt", twice(records, "archive/data/0"), "two records of one name"
    yield "twice_other_case_1.pt", archive_of({**records, "archive/DATA.pkl": b"\x80\x02}."}), "two records of one name"
    yield "traversal_1.pt", archive_of({**records, "archive/../../escaped": b"x"}), "leads out"
    yield "absolute_1.pt", archive_of({**records, "/etc/escaped": b"x"}), "leads out"
    yield "backslash_1.pt", archive_of({**records, "archive\\..\\escaped": b"x"}), "leads out"
    yield "two_roots_1.pt", archive_of({**records, "other/data.pkl": records["archive/data.pkl"]}), "no data.pkl beside"
    yield (
        "no_pickle_1.pt",
        archive_of({name: value for name, value in records.items() if name != "archive/data.pkl"}),
        "no data.pkl",
    )
    yield (
        "no_tensors_1.pt",
        archive_of({"archive/data.pkl": records["archive/data.pkl"], "archive/version": b"3\n"}),
        "torch cannot load",
    )
    yield "big_endian_1.pt", changed(good, byteorder=b"big"), "big-endian"
    yield "overlap_1.pt", overlapping(good), "overlap"
    yield "hidden_bytes_1.pt", hiding(archive_of(records)), "two contents"
    yield "encrypted_1.pt", flagged(archive_of(records)), "encrypted"
    yield (
        "torchscript_1.pt",
        archive_of({**records, "archive/code/__torch__.py": b"pass", "archive/constants.pkl": b"\x80\x02)."}),
        "TorchScript",
    )
    yield "empty_archive_1.pt", b"PK\x03\x04" + archive_of({}), "its archive is empty"
    yield "plain_zip_1.pt", archive_of({"notes.txt": b"no weights here"}), "no data.pkl"


def twice(records: Mapping[str, bytes], name: str) -> bytes:
    """An archive with two records of one name, the second with other bytes."""
    other = name[:-1] + "\x7f"
    raw = archive_of({**records, other: b"\1" * len(records[name])})
    return raw.replace(other.encode(), name.encode())


def overlapping(good: bytes) -> bytes:
    """The second record of the list is said to begin where the first does."""
    raw = bytearray(good)
    first = raw.find(b"PK\x01\x02")
    second = raw.find(b"PK\x01\x02", first + 4)
    raw[second + 42 : second + 46] = raw[first + 42 : first + 46]
    return bytes(raw)


def hiding(raw: bytes) -> bytes:
    """Bytes between the last record and the list, which only some readers allow for."""
    start = raw.find(b"PK\x01\x02")
    return raw[:start] + b"\0" * 100 + raw[start:]


def flagged(raw: bytes) -> bytes:
    """The first record of the list is said to be encrypted."""
    changed_ = bytearray(raw)
    changed_[raw.find(b"PK\x01\x02") + 8] |= 1
    return bytes(changed_)


def pickles_that_lie(state: State) -> Iterator[tuple[str, bytes, str]]:
    good = saved(state)
    yield "stride0_1.pt", by_hand(tensor((10**6, 10**6), (0, 0), 1)), "does not fit"
    yield "past_storage_1.pt", by_hand(tensor((4,), (1,), 1)), "torch cannot load"
    yield "offset_past_storage_1.pt", by_hand(tensor((1,), (1,), 1, offset=10**9)), "torch cannot load"
    yield "numbers_lie_1.pt", by_hand(tensor((1,), (1,), 10**6)), "torch cannot load"
    yield "huge_numbers_1.pt", by_hand(tensor((1,), (1,), 2**62)), "contradicts itself"
    yield "negative_shape_1.pt", by_hand(tensor((-1,), (1,), 1)), "torch cannot load"
    yield "record_traversal_1.pt", by_hand(tensor((1,), (1,), 1, record="../../../etc/passwd")), "torch cannot load"
    yield "hex_bomb_1.pt", by_hand(doubling(30)), "memory"
    yield "deep_1.pt", by_hand(b"]" * 200_000 + b"a" * 199_999), "no tensor but a value of type list"
    yield "memo_1.pt", by_hand(b"Nr\xff\xff\xff\xff"), "without bound"
    yield "many_steps_1.pt", by_hand(b"](" + b"N" * 2_000_001 + b"e"), "steps"
    yield "large_pickle_1.pt", by_hand(text("a" * (17 * 2**20))), "16 MiB"
    yield "cut_pickle_1.pt", changed(good, data_pkl=records_of(good)["archive/data.pkl"][:-20]), "damaged"
    yield "empty_pickle_1.pt", changed(good, data_pkl=b""), "damaged"
    yield "popped_empty_1.pt", changed(good, data_pkl=b"\x80\x02s."), "its pickle contradicts itself"
    yield "no_memo_1.pt", changed(good, data_pkl=b"\x80\x02h\x09."), "its pickle contradicts itself"
    yield "set_on_number_1.pt", changed(good, data_pkl=b"\x80\x02K\x01K\x02K\x03s."), "its pickle contradicts itself"


def weights_that_do_not_fit(state: State) -> Iterator[tuple[str, bytes, str]]:
    name = "classifier.0.weight"
    for value, words in ((float("nan"), "NaN or infinity"), (float("inf"), "NaN or infinity")):
        spoiled = state[name].clone()
        spoiled[0, 0] = value
        yield f"holds_{value}_1.pt", saved({**state, name: spoiled}), words
    yield "stretched_1.pt", saved({**state, name: torch.zeros(1, 1).expand(10, 16)}), "fewer bytes than its shape"
    yield "overflow_1.pt", saved({**state, name: state[name].double() + 1e300}), "NaN or infinity"
    yield "integers_1.pt", saved({**state, name: state[name].long()}), "holds int64"
    yield "not_a_tensor_1.pt", saved({**state, name: 3}), "holds no tensor but a value of type int"
    yield "number_key_1.pt", saved({**state, 7: state[name]}), "'7' is no name of a tensor"
    yield "script_key_1.pt", saved({**state, "<script>alert(1)</script>": state[name]}), "is no name of a tensor"
    yield "path_key_1.pt", saved({**state, "../../x": state[name]}), "is no name of a tensor"
    yield "control_key_1.pt", saved({**state, "a\x1b[31m\nb": state[name]}), "is no name of a tensor"
    yield "long_key_1.pt", saved({**state, "k" * 100_000: state[name]}), "is no name of a tensor"
    yield "both_prefixes_1.pt", saved({**state, f"module.{name}": state[name]}), "twice"
    yield "empty_dict_1.pt", saved({}), "missing"
    yield "list_1.pt", saved([state[name]]), "holds a list"
    yield "tensor_1.pt", saved(state[name]), "holds a Tensor"
    yield "one_missing_1.pt", saved({key: value for key, value in state.items() if key != name}), f"1 key missing ({name})"
    yield "one_more_1.pt", saved({**state, "classifier.4.bias": state[name]}), "1 key unknown (classifier.4.bias)"
    yield "strange_counter_1.pt", saved({**state, "classifier.num_batches_tracked": torch.tensor(1)}), "unknown"
    yield "wrong_shape_1.pt", saved({**state, name: state[name].T.clone()}), f"'{name}' has shape [16, 10]"
    yield "best.pt", saved({"model_state_dict": state}), "which epoch"


def other_formats(state: State) -> Iterator[tuple[str, bytes, str]]:
    lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 23552\n"
    yield "empty_1.pt", b"", "is empty"
    yield "lfs_1.pt", lfs, "Git LFS pointer"
    yield "lfs_1.safetensors", lfs, "Git LFS pointer"
    yield "page_1.pt", b"<!DOCTYPE html><html><body>Sign in</body></html>", "HTML page"
    yield "page_1.safetensors", b"\n  <html><head><title>404</title>", "HTML page"
    yield "words_1.pt", b"these are not weights", "neither"
    yield "zeros_1.pt", b"\0" * 4096, "neither"
    yield "numpy_1.pt", b"\x93NUMPY\x01\x00v\x00" + b"\0" * 100, "neither"
    yield "hdf5_1.pt", b"\x89HDF\r\n\x1a\n" + b"\0" * 100, "neither"
    yield "tar_1.pt", b"data\0".ljust(257, b"\0") + b"ustar" + b"\0" * 300, "before 1.6"
    yield "line\nbreak\x1b[31m_1.pt", b"these are not weights", "neither"
    yield "long_" + "n" * 200 + "_1.pt", b"these are not weights", "neither"
    yield "right\u202eleft_1.pt", b"these are not weights", "neither"


def safetensors_that_lie(state: State) -> Iterator[tuple[str, bytes, str]]:
    import safetensors.torch

    good = safetensors.torch.save(state)
    key = "classifier.2.bias"
    yield "cut_1.safetensors", good[:-1], "not valid safetensors"
    yield "more_1.safetensors", good + b"\0", "not valid safetensors"
    yield "nothing_1.safetensors", b"\2\0\0\0\0\0\0\0{}", "missing"
    yield "header_length_1.safetensors", (2**63).to_bytes(8, "little") + good[8:], "16 MiB"
    yield "padded_header_1.safetensors", safetensors_of({key: entry([1], [0, 4])}, b"\0\0\0\0", pad=17 * 2**20), "16 MiB"
    yield "no_json_1.safetensors", safetensors_of(b"{not json"), "not valid safetensors"
    yield "past_end_1.safetensors", safetensors_of({key: entry([4], [0, 16])}, b"\0" * 4), "not valid safetensors"
    yield "overlap_1.safetensors", safetensors_of({"a": entry([1], [0, 4]), "b": entry([1], [2, 6])}, b"\0" * 6), "not valid"
    yield "hole_1.safetensors", safetensors_of({"a": entry([1], [0, 4]), "b": entry([1], [8, 12])}, b"\0" * 12), "not valid"
    yield "shape_lies_1.safetensors", safetensors_of({key: entry([1000], [0, 4])}, b"\0" * 4), "not valid safetensors"
    yield "shape_overflow_1.safetensors", safetensors_of({key: entry([2**62, 2**62], [0, 4])}, b"\0" * 4), "not valid"
    yield "zero_by_much_1.safetensors", safetensors_of({key: entry([0, 2**62], [0, 0])}), "does not fit"
    yield "unknown_dtype_1.safetensors", safetensors_of({key: entry([1], [0, 4], "X99")}, b"\0" * 4), "not valid safetensors"
    nan = {**state, key: torch.tensor([float("nan")])}
    yield "nan_1.safetensors", safetensors.torch.save(nan), "NaN or infinity"
    small = {**state, key: state[key].to(torch.float8_e4m3fn)}
    yield "float8_1.safetensors", safetensors.torch.save(small), "holds float8"
    yield "deep_json_1.safetensors", safetensors_of(b'{"a":' + b"[" * 100_000), "not valid safetensors"
