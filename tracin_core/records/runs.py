"""A finished run: its manifest (`runs/<id>/run.json`), its tables, and views of its kernels. No torch, no gradient."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from tracin_core.data.files import read_json, write_json, write_whole
from tracin_core.data.samples import all_pairs, require_classes, stratified_pairs
from tracin_core.errors import NotFoundError, ViewError
from tracin_core.recipe import LossName, Recipe
from tracin_core.records.store import BlockKey, BlockStore, digest_of
from tracin_core.scores.influence import Kernels, View
from tracin_core.scores.losses import PairLoss

Weights = Literal["uniform", "learning_rate"] | Sequence[float]
SAMPLE_TYPES: dict[str, Any] = {
    "id": str,
    "label": "int64",
    "angle": "int64",
    "material": str,
    "frequency": str,
    "sequence": "int64",
    "path": str,
    "split": str,
    "digest": str,
}


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
        return BlockKey(group, left.digest, right.digest, (len(self.layers), len(left.ids), len(right.ids)))

    def outputs_key(self, group: str, chunk: Chunk) -> BlockKey:
        return BlockKey(group, chunk.digest, None, (len(chunk.ids),))

    def write(self, folder: Path, samples: pd.DataFrame) -> None:
        """`samples.csv` and then `run.json` are on disk; a run exists once the latter does."""
        write_whole(folder / "samples.csv", [samples.to_csv(index=False).encode()])
        write_json(folder / "run.json", asdict(self))

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        plain = read_json(folder / "run.json")
        plain["chunks"] = {
            side: tuple(Chunk(tuple(chunk["ids"]), chunk["digest"]) for chunk in chunks) for side, chunks in plain["chunks"].items()
        }
        for name in ("layers", "checkpoints", "groups", "health", "truth"):
            plain[name] = tuple(plain[name])
        return cls(**plain)


def chunk_digest(sample_digests: Sequence[str]) -> str:
    """Content address of samples in this order."""
    return hashlib.sha256("\n".join(sample_digests).encode()).hexdigest()[:32]


class Run:
    """One analysis, finished: `run.samples`, `run.train_pairs`, `run.test_pairs`, `run.checkpoints`, `run.view(...)`."""

    def __init__(self, folder: Path, store: BlockStore, datasets: Path) -> None:
        try:
            self.manifest = Manifest.read(folder)
        except FileNotFoundError as failure:
            raise NotFoundError(
                f"Run '{folder.name}' is not finished in this workspace; look at its job, or compute it again."
            ) from failure
        self._store = store
        self._folder = folder
        self._datasets = datasets
        self.id = self.manifest.id
        self.recipe = Recipe.from_dict(self.manifest.recipe)
        self.name = self.recipe.name
        self.simulated = self.recipe.simulated
        self.layers = list(self.manifest.layers)
        self.loss = PairLoss(**self.manifest.loss)
        self.truth = list(self.manifest.truth)
        self.created = self.manifest.created
        self.digest = digest_of(
            [self.manifest.groups, {side: [c.digest for c in self.manifest.chunks[side]] for side in self.manifest.chunks}]
        )

    @cached_property
    def samples(self) -> pd.DataFrame:
        """Every sample of the data set: id, label, angle, material, frequency, sequence, path, split, digest."""
        return pd.read_csv(self._folder / "samples.csv", dtype=SAMPLE_TYPES, keep_default_na=False)

    @cached_property
    def splits(self) -> dict[str, pd.DataFrame]:
        """The samples of each side, in the order of the kernels' rows and columns."""
        by_id = self.samples.set_index("id", drop=False)
        stored = {side: [i for chunk in chunks for i in chunk.ids] for side, chunks in self.manifest.chunks.items()}
        sides = {side: by_id.loc[ids].reset_index(drop=True) for side, ids in stored.items()}
        sides["test"] = self.samples[self.samples["split"] == "test"].reset_index(drop=True)
        return sides

    @cached_property
    def train_pairs(self) -> pd.DataFrame:
        """All unordered pairs of training samples with different labels."""
        require_classes(self.splits["train"])
        return all_pairs(self.splits["train"])

    @cached_property
    def test_pairs(self) -> pd.DataFrame:
        """The test pairs, from the validation side: all of them, or as many as the recipe asks, spread over angle gaps."""
        require_classes(self.splits["validation"])
        pairs = all_pairs(self.splits["validation"])
        count = self.recipe.task.test_pairs
        return pairs if count is None else stratified_pairs(pairs, count)

    @cached_property
    def checkpoints(self) -> pd.DataFrame:
        """One row per checkpoint, by epoch."""
        return pd.DataFrame(list(self.manifest.checkpoints)).drop(columns=["arguments"], errors="ignore")

    @property
    def summed_epochs(self) -> list[int]:
        """The epochs a view sums when none are named: all but epoch 0, which no training step led to."""
        epochs = [int(epoch) for epoch in self.checkpoints["epoch"]]
        return [epoch for epoch in epochs if epoch > 0] or epochs

    def health(self) -> pd.DataFrame:
        """The engine's checks of itself, and the dead test pairs under the recorded loss: check, passed, value (measured), detail."""
        dead = self.view().dead_tests
        named = ", ".join(self.test_pairs["id"][dead].head(3)) + (", ..." if dead.sum() > 3 else "")
        told = f"{dead.sum()} of {len(dead)} test pairs have no gradient under {self.loss.describe()}" + (
            f": {named}." if dead.any() else "."
        )
        last = {"name": "dead_tests", "passed": not dead.any(), "value": float(dead.sum()), "detail": told}
        checks = pd.DataFrame([*self.manifest.health, last], columns=["name", "passed", "value", "detail"])
        return checks.rename(columns={"name": "check"})

    def preview(self, sample_id: str) -> tuple[Path, Path]:
        """The sample's small picture and its playable sound, as written by the worker.

        Raises:
            NotFoundError: no such sample.
        """
        row = self.samples.loc[self.samples["id"] == sample_id]
        if row.empty:
            raise NotFoundError(f"Run '{self.name}' has no sample '{sample_id}'; choose one from its table of samples.")
        stem = self._datasets / self.manifest.dataset / "previews" / str(row["digest"].iloc[0])
        return stem.with_suffix(".png"), stem.with_suffix(".wav")

    @cached_property
    def kernels(self) -> Kernels:
        """Outputs and kernels of every checkpoint, assembled from verified blocks."""
        train, test = self.manifest.chunks["train"], self.manifest.chunks["validation"]
        groups = self.manifest.groups
        return Kernels(
            train_train=np.stack([self._symmetric(group, train) for group in groups]),
            test_train=np.stack([self._rectangle(group, test, train) for group in groups]),
            test_test=np.stack([self._symmetric(group, test) for group in groups]),
            train_outputs=np.stack([self._outputs(group, train) for group in groups]),
            test_outputs=np.stack([self._outputs(group, test) for group in groups]),
        )

    def view(
        self,
        *,
        loss: LossName | None = None,
        margin: float | None = None,
        ghm_bins: int | None = None,
        ghm_alpha: float | None = None,
        weights: Weights = "uniform",
        checkpoints: Sequence[int] | None = None,
        measure: Literal["dot"] = "dot",
        test_quantity: Literal["loss", "score_difference"] = "loss",
        layers: Sequence[str] | None = None,
    ) -> View:
        """The scores under these settings; None means as the checkpoints record. No gradient is computed.

        Args:
            checkpoints: epochs to sum; None: `summed_epochs`.
            weights: w_c of `sum_c w_c <grad L(e'), grad L(e)>`.

        Raises:
            ViewError: a setting has no meaning for this run; the message lists what exists.
        """
        epochs = self.summed_epochs if checkpoints is None else list(checkpoints)
        rows = self._rows(epochs)
        asked: dict[str, Any] = {"name": loss, "margin": margin, "ghm_bins": ghm_bins, "ghm_alpha": ghm_alpha}
        chosen = PairLoss(**{**asdict(self.loss), **{name: value for name, value in asked.items() if value is not None}})
        return View.of_pairs(
            self.train_pairs,
            self.test_pairs,
            self.kernels.at(rows),
            loss=chosen,
            checkpoint_weights=self._weights(weights, rows),
            checkpoint_names=[f"epoch {epoch}" for epoch in epochs],
            train_samples=self.splits["train"],
            test_samples=self.splits["validation"],
            measure=measure,
            test_quantity=test_quantity,
            layers=None if layers is None else [self._layer(name) for name in layers],
        )

    def _rows(self, epochs: Sequence[int]) -> list[int]:
        known = [int(epoch) for epoch in self.checkpoints["epoch"]]
        strangers = [epoch for epoch in epochs if epoch not in known]
        if strangers or not epochs or len(set(epochs)) < len(epochs):
            raise ViewError(
                f"The view asks for epochs {list(epochs)}; this run has {known}: choose one or more of these, each once."
            )
        return [known.index(epoch) for epoch in epochs]

    def _weights(self, weights: Weights, rows: list[int]) -> npt.NDArray[np.float64]:
        if isinstance(weights, str):
            if weights == "uniform":
                return np.ones(len(rows))
            if weights == "learning_rate":
                rates = self.checkpoints["learning_rate"].iloc[rows].to_numpy(dtype=float)
                if np.isnan(rates).any():
                    raise ViewError(
                        "Some checkpoints record no learning rate; choose uniform weights, or give the weights by hand."
                    )
                return rates
            raise ViewError(
                f"There are no checkpoint weights named '{weights}'; choose uniform, learning_rate, or a list of numbers."
            )
        given = np.asarray(weights, dtype=float)
        if given.shape != (len(rows),) or not np.isfinite(given).all():
            raise ViewError(f"{given.size} checkpoint weights were given for {len(rows)} checkpoints; give one finite number each.")
        return given

    def _layer(self, name: str) -> int:
        if name not in self.layers:
            raise ViewError(f"This run has no layer '{name}'; choose from {', '.join(self.layers)}.")
        return self.layers.index(name)

    def _outputs(self, group: str, chunks: Sequence[Chunk]) -> npt.NDArray[np.float32]:
        return np.concatenate([self._store.read(self.manifest.outputs_key(group, chunk)) for chunk in chunks])

    def _rectangle(self, group: str, left: Sequence[Chunk], right: Sequence[Chunk]) -> npt.NDArray[np.float32]:
        def block(a: Chunk, b: Chunk) -> npt.NDArray[np.float32]:
            return self._store.read(self.manifest.kernel_key(group, a, b))

        return np.concatenate([np.concatenate([block(a, b) for b in right], axis=2) for a in left], axis=1)

    def _symmetric(self, group: str, chunks: Sequence[Chunk]) -> npt.NDArray[np.float32]:
        def block(i: int, j: int) -> npt.NDArray[np.float32]:
            if i <= j:
                return self._store.read(self.manifest.kernel_key(group, chunks[i], chunks[j]))
            return block(j, i).transpose(0, 2, 1)

        places = range(len(chunks))
        return np.concatenate([np.concatenate([block(i, j) for j in places], axis=2) for i in places], axis=1)
