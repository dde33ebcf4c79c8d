"""What a finished run consists of (`runs/<id>/run.json` and `samples.csv`), and its kernels put together from their blocks."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from tracin_core.data.files import read_json, write_json, write_whole
from tracin_core.recipe import Cotangent
from tracin_core.records.store import BlockKey, BlockStore
from tracin_core.scores.influence import Kernels

TEXTS = ("id", "label_name", "material", "frequency", "path", "split", "digest")  # columns of samples that may look like numbers


@dataclass(frozen=True)
class Chunk:
    """Samples whose products are stored together. Sealed: samples added later form chunks of their own."""

    ids: tuple[str, ...]
    digest: str


@dataclass(frozen=True)
class Manifest:
    """What a run consists of; from it every block's name follows."""

    id: str
    recipe: dict[str, Any]
    created: float
    layers: tuple[str, ...]
    checkpoints: tuple[dict[str, Any], ...]
    groups: tuple[str, ...]
    chunks: dict[str, tuple[Chunk, ...]]
    loss: dict[str, Any]
    dataset: str
    health: tuple[dict[str, Any], ...] = ()
    truth: tuple[dict[str, Any], ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    format: int = 1
    cotangent: Cotangent = "score"
    outputs: int = 1
    columns: dict[str, str] = field(default_factory=dict)  # of the samples: the type of each
    kind: Literal["kernels", "scores"] = "kernels"  # scores: imported from files of them, see `imports`
    scores: dict[str, Any] = field(default_factory=dict)  # of an imported run: where its numbers are from, and their digest
    who: str = ""  # asked for it; empty where nobody has a name

    def kernel_keys(self, group: str) -> list[BlockKey]:
        """The blocks of one checkpoint: outputs, train x train and test x test (upper chunk triangles), test x train."""
        train, test = self.chunks["train"], self.chunks["validation"]
        return [
            *(self.outputs_key(group, chunk) for chunk in (*train, *test)),
            *(self.kernel_key(group, a, b) for i, a in enumerate(train) for b in train[i:]),
            *(self.kernel_key(group, a, b) for a in test for b in train),
            *(self.kernel_key(group, a, b) for i, a in enumerate(test) for b in test[i:]),
        ]

    def kernel_key(self, group: str, left: Chunk, right: Chunk) -> BlockKey:
        each = self.positions_per_sample
        return BlockKey(group, left.digest, right.digest, (len(self.layers), each * len(left.ids), each * len(right.ids)))

    def outputs_key(self, group: str, chunk: Chunk) -> BlockKey:
        return BlockKey(group, chunk.digest, None, (len(chunk.ids), self.outputs)[: 2 if self.outputs > 1 else 1])

    @property
    def positions_per_sample(self) -> int:
        """How many rows of the kernel a sample has: one, or one for each of its outputs."""
        return self.outputs if self.cotangent == "outputs" else 1

    def write(self, folder: Path, samples: pd.DataFrame) -> None:
        """`samples.csv` and then `run.json` are on disk; a run exists once the latter does."""
        write_whole(folder / "samples.csv", [samples.to_csv(index=False).encode()])
        columns = {str(name): str(kind) for name, kind in samples.dtypes.items()}
        write_json(folder / "run.json", {**asdict(self), "columns": columns})

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        plain = read_json(folder / "run.json")
        plain["chunks"] = {
            side: tuple(Chunk(tuple(chunk["ids"]), chunk["digest"]) for chunk in chunks) for side, chunks in plain["chunks"].items()
        }
        for name in ("layers", "checkpoints", "groups", "health", "truth"):
            plain[name] = tuple(plain[name])
        return cls(**plain)


def read_samples(folder: Path, columns: Mapping[str, str] | None = None) -> pd.DataFrame:
    """The samples of the run in this folder.

    Args:
        columns: the type of each, so that the code 007 stays a text; None, as of runs that noted none: what they look like.
    """
    types: Any = dict(columns) if columns else dict.fromkeys(TEXTS, str)
    gaps = {name: [""] for name, kind in types.items() if "float" in str(kind)}
    return pd.read_csv(folder / "samples.csv", dtype=types, keep_default_na=False, na_values=gaps)


def chunk_digest(sample_digests: Sequence[str]) -> str:
    """Content address of samples in this order."""
    return hashlib.sha256("\n".join(sample_digests).encode()).hexdigest()[:32]


# ---- blocks -------------------------------------------------------------------------------------------------------------------------


def read_kernels(manifest: Manifest, store: BlockStore) -> Kernels:
    """Outputs and kernels of every checkpoint, each block verified.

    Raises:
        FileNotFoundError, DamagedBlockError: as `BlockStore.read`.
    """
    train, test = manifest.chunks["train"], manifest.chunks["validation"]
    groups = manifest.groups
    return Kernels(
        train_train=np.stack([_symmetric(manifest, store, group, train) for group in groups]),
        test_train=np.stack([_rectangle(manifest, store, group, test, train) for group in groups]),
        test_test=np.stack([_symmetric(manifest, store, group, test) for group in groups]),
        train_outputs=np.stack([read_outputs(manifest, store, group, "train") for group in groups]),
        test_outputs=np.stack([read_outputs(manifest, store, group, "validation") for group in groups]),
    )


def read_outputs(manifest: Manifest, store: BlockStore, group: str, side: str) -> npt.NDArray[np.float32]:
    """One checkpoint's outputs of a side's samples, [n] or [n, outputs]."""
    return np.concatenate([store.read(manifest.outputs_key(group, chunk)) for chunk in manifest.chunks[side]])


def _rectangle(
    manifest: Manifest, store: BlockStore, group: str, left: Sequence[Chunk], right: Sequence[Chunk]
) -> npt.NDArray[np.float32]:
    def block(a: Chunk, b: Chunk) -> npt.NDArray[np.float32]:
        return store.read(manifest.kernel_key(group, a, b))

    return np.concatenate([np.concatenate([block(a, b) for b in right], axis=2) for a in left], axis=1)


def _symmetric(manifest: Manifest, store: BlockStore, group: str, chunks: Sequence[Chunk]) -> npt.NDArray[np.float32]:
    def block(i: int, j: int) -> npt.NDArray[np.float32]:
        if i <= j:
            return store.read(manifest.kernel_key(group, chunks[i], chunks[j]))
        return block(j, i).transpose(0, 2, 1)

    places = range(len(chunks))
    return np.concatenate([np.concatenate([block(i, j) for j in places], axis=2) for i in places], axis=1)
