"""A finished run: its tables, and views of its kernels. No torch, no gradient."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd

from tracin_core.data.samples import all_pairs, every_draw, listed_draws, pairs_of, random_draws, require_classes, stratified_pairs
from tracin_core.errors import NotFoundError, ViewError
from tracin_core.recipe import LabelLossName, LossName, NumberLossName, RankingTask, Recipe
from tracin_core.records.health import health_of
from tracin_core.records.manifest import Manifest, read_kernels, read_outputs, read_samples
from tracin_core.records.store import BlockStore, digest_of
from tracin_core.scores.chance import Chance, label_chance, label_reached, number_chance, order_chance, order_reached
from tracin_core.scores.comparison import Methods
from tracin_core.scores.examples import TestQuantity
from tracin_core.scores.influence import Kernels, Measure
from tracin_core.scores.losses import PairLoss
from tracin_core.scores.relabel import RelabelCounts, rebuilt, relabel_counts, relabelled
from tracin_core.scores.representer import DEFAULT_RIDGE
from tracin_core.scores.retraining import Training
from tracin_core.scores.sample_losses import SampleLoss, SampleLossName
from tracin_core.scores.view import View
from tracin_core.scores.weights import CheckpointWeights, Weights, checkpoint_weights, rate_sums

PairUniverse = Literal["all", "drawn"] | Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Sides:
    """The samples and pairs of the two sides of a view, and which training pairs a relabelling made."""

    train_samples: pd.DataFrame
    test_samples: pd.DataFrame
    train_pairs: pd.DataFrame
    test_pairs: pd.DataFrame
    strangers: npt.NDArray[np.bool_] | None = None


class Preview(NamedTuple):
    """The files of one sample's preview, there or not."""

    picture: Path
    sound: Path
    text: Path


def number_or_none(value: Any) -> float | None:
    """A recorded number as a float; None where nothing, or something else, is recorded."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


class Run:
    """One analysis, finished: `run.samples`, `run.train_pairs`, `run.test_pairs`, `run.checkpoints`, `run.view(...)`."""

    lacks: tuple[str, ...] = ()  # parts of the scores that an imported run does not have
    verdict: tuple[str, ...] = ()  # why the numbers of an imported run are not influences of pairs, in sentences

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
        self.kind = self.manifest.kind
        self.simulated = self.recipe.simulated
        self.layers = list(self.manifest.layers)
        self.task = self.recipe.task.kind
        self.loss = PairLoss(**self.manifest.loss) if self.task == "ranking" else SampleLoss(**self.manifest.loss)
        self.truth = list(self.manifest.truth)
        self.created = self.manifest.created
        self.digest = self._digest_with(self.manifest.groups)

    def _digest_with(self, groups: Sequence[str]) -> str:
        return digest_of([groups, {side: [c.digest for c in self.manifest.chunks[side]] for side in self.manifest.chunks}])

    @property
    def plain_digest(self) -> str:
        """The digest of the run of the same checkpoints and samples by plain gradients."""
        if self.precondition == "none":
            return self.digest
        definitions = [self._store.definition(group) for group in self.manifest.groups]
        return self._digest_with([digest_of({**told, "precondition": None}) for told in definitions])

    @cached_property
    def samples(self) -> pd.DataFrame:
        """Every sample of the data set: id, target, path, split, digest, its metadata, and what the task reads of the target.

        Ranking: angle (the target) and label (its rank). Classification: label and label_name. Regression: target alone.
        """
        return read_samples(self._folder, self.manifest.columns)

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
        """All unordered pairs of training samples with different labels.

        Raises:
            ViewError: the task is not ranking.
        """
        _ = self.ranking  # or it says why not
        require_classes(self.splits["train"])
        return all_pairs(self.splits["train"])

    @cached_property
    def test_pairs(self) -> pd.DataFrame:
        """The test pairs, from the validation side: all of them, or as many as the recipe asks, spread over angle gaps.

        Raises:
            ViewError: the task is not ranking.
        """
        _ = self.ranking  # or it says why not
        require_classes(self.splits["validation"])
        return self._asked(all_pairs(self.splits["validation"]))

    def validated(self, view: View) -> View:
        """The view with all that a training's validation side is measured on as its tests: every pair, where the run has fewer."""
        if self.task != "ranking":
            return view
        every = all_pairs(self.splits["validation"])
        return view if every["id"].tolist() == view.test_pairs["id"].tolist() else view.tested_on(every)

    def _asked(self, pairs: pd.DataFrame) -> pd.DataFrame:
        count = self.ranking.test_pairs
        return pairs if count is None else stratified_pairs(pairs, count, seed=self.ranking.test_seed or 0)

    @property
    def ranking(self) -> RankingTask:
        """What the recipe says of ranking.

        Raises:
            ViewError: the task is another.
        """
        if not isinstance(self.recipe.task, RankingTask):
            raise ViewError(
                f"Run '{self.name}' is of {self.task}, whose examples are single samples, not pairs; ask for its samples."
            )
        return self.recipe.task

    @property
    def noun(self) -> Literal["pair", "sample"]:
        """What the examples of this run are."""
        return "pair" if self.task == "ranking" else "sample"

    @property
    def counts(self) -> tuple[int, int]:
        """How many training examples there are, and how many tests."""
        if self.task == "ranking":
            return len(self.train_pairs), len(self.test_pairs)
        return len(self.splits["train"]), len(self.splits["validation"])

    @property
    def losses(self) -> tuple[str, ...]:
        """The losses that a view of this task may take; whether the kernels leave the choice free is told by `view.what_ifs()`."""
        known = {"ranking": LossName, "classification": LabelLossName, "regression": NumberLossName}
        return tuple(get_args(known[self.task]))

    @cached_property
    def classes(self) -> dict[int, Any]:
        """What each label stands for, of all samples: an angle, or a class's name; empty where targets are numbers."""
        name = "label_name" if self.task == "classification" else "angle"
        if name not in self.samples:
            return {}
        return {int(label): told for label, told in self.samples[["label", name]].drop_duplicates().itertuples(index=False)}

    def draws(self, pairs: PairUniverse = "all", draw_seed: int | None = None) -> dict[str, pd.DataFrame]:
        """The pairs of positions of each side that make up a pair universe, equal labels included: first, second, multiplicity.

        Args:
            pairs: `all` unordered ones; as `drawn` at random by a training, with repeats; or a list of training pairs by their two ids.
            draw_seed: of the drawing; None: the seed that the checkpoints record.

        Raises:
            ViewError: no such universe, or no seed is recorded.
            UnknownSampleError: a listed pair is not of two training samples.
        """
        train, test = self.splits["train"], self.splits["validation"]
        if not isinstance(pairs, str):
            return {"train": listed_draws(train, pairs), "validation": every_draw(len(test))}
        if pairs == "all":
            return {"train": every_draw(len(train)), "validation": every_draw(len(test))}
        if pairs != "drawn":
            raise ViewError(f"There is no pair universe '{pairs}'; choose all, drawn, or a list of pairs of ids.")
        return dict(zip(("train", "validation"), random_draws((len(train), len(test)), self._seed(draw_seed)), strict=True))

    def _seed(self, draw_seed: int | None) -> int:
        recorded = (self.manifest.checkpoints[-1].get("arguments") or {}).get("seed")
        for seed in (draw_seed, self.ranking.draw_seed, recorded):
            if seed is not None:
                return int(seed)
        raise ViewError("The checkpoints record no seed to draw the pairs again with; give draw_seed.")

    @cached_property
    def trained_draws(self) -> pd.DataFrame:
        """The universe that the model was trained on, as the recipe says: GHM densities and step counts are of it."""
        return self.draws(self.ranking.pairs or "all")["train"]

    @cached_property
    def checkpoints(self) -> pd.DataFrame:
        """One row per checkpoint, by epoch."""
        return pd.DataFrame(list(self.manifest.checkpoints)).drop(columns=["arguments", "descent"], errors="ignore")

    @property
    def summed_epochs(self) -> list[int]:
        """The epochs a view sums when none are named: all but epoch 0, which no training step led to."""
        epochs = [int(epoch) for epoch in self.checkpoints["epoch"]]
        return [epoch for epoch in epochs if epoch > 0] or epochs

    @property
    def _arguments(self) -> dict[str, Any]:
        """What the last checkpoint records of the training's settings."""
        return self.manifest.checkpoints[-1].get("arguments") or {}

    @property
    def training_arguments(self) -> dict[str, Any]:
        """The settings of the training that the last checkpoint records, as it names them; empty where it records none."""
        return dict(self._arguments)

    def health(self) -> pd.DataFrame:
        """What speaks for and against the scores: check, passed, value (measured), detail in words; see `health`."""
        return health_of(self)

    @property
    def precondition(self) -> str:
        """What the gradients were divided by: "none", "adam", "adam_full" or "ekfac", as the recipe's [engine] says."""
        return str(self.manifest.recipe.get("engine", {}).get("precondition", "none"))

    @property
    def damping(self) -> float | None:
        """Of EKFAC, times its mean eigenvalue; None where the gradients were not divided by it."""
        return float(self.manifest.recipe["engine"]["damping"]) if self.precondition == "ekfac" else None

    @property
    def other_optimizer(self) -> str | None:
        """What trained the checkpoints, where the scores are by the formula of SGD nevertheless; else None."""
        return self.trained_by_other if self.precondition == "none" else None

    @property
    def trained_by_other(self) -> str | None:
        """What trained the checkpoints, where that is known and not SGD; else None."""
        known = self.checkpoints["optimizer"].dropna().tolist() if "optimizer" in self.checkpoints else []
        return next((str(name) for name in known if name != "SGD"), None)

    @cached_property
    def above_chance(self) -> Chance:
        """How the last checkpoint does on the validation side, beside guessing: the influences of a model at chance explain nothing."""
        outputs = read_outputs(self.manifest, self._store, self.manifest.groups[-1], "validation")
        samples = self.splits["validation"]
        if self.task == "ranking":
            pairs = self.test_pairs
            gap = pairs["target"].to_numpy() * (outputs[pairs["first"]] - outputs[pairs["second"]])
            return order_chance(gap, samples["target"].to_numpy()[np.unique(pairs[["first", "second"]])])
        if self.task == "classification":
            return label_chance(outputs, samples["label"].to_numpy())
        mean = float(self.splits["train"]["target"].mean())
        return number_chance(outputs.reshape(-1), samples["target"].to_numpy(dtype=np.float64), mean)

    @cached_property
    def reached(self) -> npt.NDArray[np.float64]:
        """What the last checkpoint reaches on each training example: 1 right, 0.5 undecided, 0 wrong; of numbers, the squared error."""
        pairs = self.train_pairs if self.task == "ranking" else None
        return self._reached(self.kernels.train_outputs[-1], self.splits["train"], pairs)

    @cached_property
    def test_reached(self) -> npt.NDArray[np.float64]:
        """The same of each test, which is of the validation side."""
        pairs = self.test_pairs if self.task == "ranking" else None
        return self._reached(self.kernels.test_outputs[-1], self.splits["validation"], pairs)

    def _reached(self, raw: npt.NDArray[Any], side: pd.DataFrame, pairs: pd.DataFrame | None) -> npt.NDArray[np.float64]:
        outputs = raw.astype(np.float64)
        if pairs is not None:
            return order_reached(pairs["target"].to_numpy() * (outputs[pairs["first"]] - outputs[pairs["second"]]))
        if self.task == "regression":
            return np.asarray((outputs.reshape(-1) - side["target"].to_numpy(dtype=np.float64)) ** 2)
        return label_reached(outputs, side["label"].to_numpy())

    def preview(self, sample_id: str) -> Preview:
        """Where the worker wrote what there is to see and hear of the sample; not every kind of data has all of it.

        Raises:
            NotFoundError: no such sample.
        """
        digest = self._sample_digests.get(sample_id)
        if digest is None:
            raise NotFoundError(f"Run '{self.name}' has no sample '{sample_id}'; choose one from its table of samples.")
        stem = self._datasets / self.manifest.dataset / "previews" / digest
        return Preview(stem.with_suffix(".png"), stem.with_suffix(".wav"), stem.with_suffix(".txt"))

    @cached_property
    def _sample_digests(self) -> dict[str, str]:
        return dict(zip(self.samples["id"].tolist(), self.samples["digest"].tolist(), strict=True))

    @cached_property
    def kernels(self) -> Kernels:
        """Outputs and kernels of every checkpoint, assembled from verified blocks."""
        return read_kernels(self.manifest, self._store)

    def view(
        self,
        *,
        loss: LossName | SampleLossName | None = None,
        margin: float | None = None,
        ghm_bins: int | None = None,
        ghm_alpha: float | None = None,
        ghm_batch: int | None = None,
        smoothing: float | None = None,
        gamma: float | None = None,
        q: float | None = None,
        huber_delta: float | None = None,
        weights: CheckpointWeights = "uniform",
        half_life: float | None = None,
        checkpoints: Sequence[int] | None = None,
        measure: Measure = "dot",
        test_quantity: TestQuantity = "loss",
        layers: Sequence[str] | None = None,
        pairs: PairUniverse = "all",
        draw_seed: int | None = None,
        relabel: Mapping[str, int] | None = None,
    ) -> View:
        """The scores under these settings; None means as the checkpoints record. No gradient is computed.

        Args:
            loss: of pairs for ranking (`scores/losses.py`: margin, ghm_bins, ghm_alpha, ghm_batch are its settings), of samples for
                classification and regression (`scores/sample_losses.py`: smoothing, gamma, q, huber_delta).
            weights: w_c of `sum_c w_c <grad L(e'), grad L(e)>`, by rule (`scores/weights.py`) or by hand, in the order of `checkpoints`.
            half_life: in epochs, for the weights `recency`.
            checkpoints: epochs to sum; None: `summed_epochs`.
            pairs, draw_seed: the pair universe, see `draws`; of ranking only.
            relabel: other labels for some training or test samples (`scores/relabel.py`); what became of the pairs of the former is
                `relabel_counts`.

        Raises:
            ViewError: a setting has no meaning for this run; the message lists what exists.
            NotFoundError, UnknownSampleError: a sample that is relabelled or listed does not exist.
        """
        epochs, weights = self._in_order(checkpoints, weights)
        rows = self._rows(epochs)
        chosen = self._loss(
            {
                "name": loss,
                "margin": margin,
                "ghm_bins": ghm_bins,
                "ghm_alpha": ghm_alpha,
                "ghm_batch": ghm_batch,
                "smoothing": smoothing,
                "gamma": gamma,
                "q": q,
                "delta": huber_delta,
            }
        )
        shared: dict[str, Any] = {
            "checkpoint_weights": self.checkpoint_weights(weights, epochs, half_life=half_life).values,
            "checkpoint_names": [f"epoch {epoch}" for epoch in epochs],
            "measure": measure,
            "test_quantity": test_quantity,
            "layers": None if layers is None else [self._layer(name) for name in layers],
        }
        if isinstance(chosen, SampleLoss):
            if not isinstance(pairs, str) or pairs != "all" or draw_seed is not None:
                _ = self.ranking  # says why there are no pairs to choose
            return self._view_of_samples(chosen, self.kernels.at(rows), dict(relabel or {}), shared)
        sides = self._sides(chosen, pairs, draw_seed, dict(relabel or {}))
        return View.of_pairs(
            sides.train_pairs,
            sides.test_pairs,
            self.kernels.at(rows),
            loss=chosen,
            train_samples=sides.train_samples,
            test_samples=sides.test_samples,
            population=self._pairs(self.splits["train"], self.trained_draws, chosen) if chosen.is_ghm else None,
            strangers=sides.strangers,
            **shared,
        )

    def _loss(self, asked: dict[str, Any]) -> PairLoss | SampleLoss:
        """The recorded loss with these settings in place of its own, where they are not None."""
        given = {name: value for name, value in asked.items() if value is not None}
        strangers = sorted(set(given) - {field.name for field in fields(self.loss)})
        if strangers:
            raise ViewError(
                f"The losses of {self.task} have no {strangers[0]}; their settings are "
                f"{', '.join(field.name for field in fields(self.loss) if field.name != 'name')}."
            )
        chosen = replace(self.loss, **given)
        if isinstance(chosen, SampleLoss) and chosen.is_of_label != (self.task == "classification"):
            raise ViewError(
                f"The loss {chosen.name} is not one of {self.task}; choose from "
                f"{', '.join(get_args(LabelLossName if self.task == 'classification' else NumberLossName))}."
            )
        return chosen

    def _view_of_samples(self, loss: SampleLoss, kernels: Kernels, relabel: dict[str, int], shared: dict[str, Any]) -> View:
        train, test = self.splits["train"], self.splits["validation"]
        if relabel and self.task == "regression":
            raise ViewError("Targets of regression are numbers, which no other label can replace; leave relabel out.")
        if relabel and self.manifest.cotangent == "label_logit":
            raise ViewError(
                'The kernel of logit(p_y) fixes each sample\'s label; compute a run whose task says kernel = "outputs" to relabel.'
            )
        if relabel:
            of_test = {sample: label for sample, label in relabel.items() if sample in set(test["id"])}
            of_train = {sample: label for sample, label in relabel.items() if sample not in of_test}
            train = relabelled(train, of_train, self.classes, column="label_name")
            test = relabelled(test, of_test, self.classes, column="label_name")
        return View.of_samples(
            train,
            test,
            kernels,
            loss=loss,
            cotangent=self.manifest.cotangent,
            target="target" if self.task == "regression" else "label",
            **shared,
        )

    def _sides(self, loss: PairLoss, pairs: PairUniverse, draw_seed: int | None, relabel: dict[str, int]) -> "Sides":
        as_trained = not loss.is_ghm or self.ranking.pairs in (None, "all")
        if pairs == "all" and not relabel and as_trained:
            return Sides(self.splits["train"], self.splits["validation"], self.train_pairs, self.test_pairs)
        draws = self.draws(pairs, draw_seed)
        train, test = self.splits["train"], self.splits["validation"]
        of_train = {sample: label for sample, label in relabel.items() if sample not in set(test["id"])}
        of_test = {sample: label for sample, label in relabel.items() if sample not in of_train}
        new_train, new_test = relabelled(train, of_train, self.classes), relabelled(test, of_test, self.classes)
        train_pairs = self._pairs(new_train, draws["train"], loss)
        if train_pairs.empty:
            raise ViewError(
                "Of the pairs asked for, no training pair is left whose labels differ; list others, or relabel fewer samples."
            )
        strangers = rebuilt(self._pairs(train, self.trained_draws, loss), train_pairs) if loss.is_ghm else None
        test_pairs = self._asked(self._pairs(new_test, draws["validation"], loss))
        return Sides(new_train, new_test, train_pairs, test_pairs, strangers)

    def relabel_effects(
        self, test: str | None = None, pairs: PairUniverse = "all", draw_seed: int | None = None, **settings: Any
    ) -> pd.DataFrame:
        """What every other label of every training sample would change, on a test pair or in the mean over live ones: samples x labels.

        Args:
            settings: of the view.

        Raises:
            NotFoundError, ViewError: as `view` and `View.relabel_effects`; or the view is of relabelled samples already.
        """
        if settings.get("relabel"):
            raise ViewError("The effect of a label is measured from the labels that were trained on; leave relabel out.")
        view = self.view(pairs=pairs, draw_seed=draw_seed, **settings)
        draws = self.draws(pairs, draw_seed)["train"] if self.task == "ranking" else every_draw(0)
        return view.relabel_effects(draws, sorted(self.classes), test)

    def relabel_counts(
        self, relabel: Mapping[str, int], pairs: PairUniverse = "all", draw_seed: int | None = None
    ) -> RelabelCounts:
        """How many pairs of the relabelled training samples turn, vanish, are born, or stay as they are.

        Raises:
            NotFoundError, ViewError: no such training sample or label.
        """
        train, draws = self.splits["train"], self.draws(pairs, draw_seed)["train"]
        new = pairs_of(relabelled(train, relabel, self.classes), draws)
        return relabel_counts(pairs_of(train, draws), new, np.flatnonzero(train["id"].isin(list(relabel))).tolist())

    def checkpoint_weights(
        self, weights: CheckpointWeights = "uniform", checkpoints: Sequence[int] | None = None, *, half_life: float | None = None
    ) -> Weights:
        """The weights of these epochs under a rule, and what the rule had to assume.

        Raises:
            ViewError: as `scores.weights.checkpoint_weights`.
        """
        epochs, weights = self._in_order(checkpoints, weights)
        table = pd.DataFrame(list(self.manifest.checkpoints))
        return checkpoint_weights(weights, table, rows=self._rows(epochs), examples=self._trained_examples, half_life=half_life)

    def _in_order(self, checkpoints: Sequence[int] | None, weights: CheckpointWeights) -> tuple[list[int], CheckpointWeights]:
        """The epochs ascending, and weights that were given by hand in the same order."""
        epochs = self.summed_epochs if checkpoints is None else list(checkpoints)
        order = np.argsort(epochs, kind="stable")
        if not isinstance(weights, str) and len(weights) == len(epochs):
            weights = [weights[place] for place in order]
        return [epochs[place] for place in order], weights

    @staticmethod
    def _pairs(samples: pd.DataFrame, draws: pd.DataFrame, loss: PairLoss) -> pd.DataFrame:
        """Under `ghm_legacy` a pair keeps the orientation in which it was drawn."""
        return pairs_of(samples, draws, oriented=loss.name == "ghm_legacy")

    def methods(
        self, *, curvature: str | None = None, delta: float = 1.0, ridge: float = DEFAULT_RIDGE, seed: int = 0, **settings: Any
    ) -> Methods:
        """Every attribution method on the view of these settings, from the same kernels (`scores/comparison.py`).

        Raises:
            ViewError, NotFoundError, UnknownSampleError: as `view`; or a damping that is not above 0.
        """
        plain = self.precondition == "none"  # representer points read features off the last layer's products
        last = self.view(**{**settings, "layers": [self.layers[-1]]}) if len(self.layers) > 1 and plain else None
        chosen: dict[str, Any] = {"curvature": curvature, "delta": delta, "ridge": ridge, "last_layer": last, "seed": seed}
        return self.methods_on(self.view(**settings), **chosen)

    def methods_on(self, view: View, **settings: Any) -> Methods:
        """The methods on a view of this run that is there already; `settings` are those of `Methods`."""
        return Methods(view, self.training, inverted=self.precondition == "ekfac", **settings)

    @cached_property
    def training(self) -> Training:
        """What the checkpoints tell of the training that they are of."""
        table = pd.DataFrame(list(self.manifest.checkpoints))
        arguments = self.manifest.checkpoints[-1].get("arguments") or {}
        descent = {**arguments, **(self.manifest.checkpoints[-1].get("descent") or {})}
        batch, examples = arguments.get("batch_size"), self._trained_examples
        try:
            sums, missing = rate_sums(table, examples)[0], "" if batch else "the checkpoints record no batch size."
        except ViewError as refusal:
            sums, missing = None, str(refusal)
        return Training(
            epochs=tuple(int(epoch) for epoch in table["epoch"]),
            train_outputs=self.kernels.train_outputs,
            test_outputs=self.kernels.test_outputs,
            rate_sums=sums,
            steps_per_epoch=-(-examples // int(batch)) if batch else None,
            examples=examples,
            optimizer=table["optimizer"].iloc[-1],
            momentum=number_or_none(descent.get("momentum")),
            weight_decay=number_or_none(descent.get("weight_decay")) or 0.0,
            nesterov=bool(descent.get("nesterov")),
            dampening=number_or_none(descent.get("dampening")) or 0.0,
            missing=missing,
        )

    @cached_property
    def _trained_examples(self) -> int:
        """How many pairs, or samples, an epoch of the training went through, drawn copies counted, excluded ones not."""
        recorded = self._arguments.get("examples")
        if isinstance(recorded, int) and recorded > 0:
            return recorded
        if self.task != "ranking":
            return len(self.splits["train"])
        labels, draws = self.splits["train"]["label"].to_numpy(), self.trained_draws
        different = labels[draws["first"]] != labels[draws["second"]]
        return int(draws["multiplicity"].to_numpy()[different].sum())

    def _rows(self, epochs: Sequence[int]) -> list[int]:
        known = [int(epoch) for epoch in self.checkpoints["epoch"]]
        strangers = [epoch for epoch in epochs if epoch not in known]
        if strangers or not epochs or len(set(epochs)) < len(epochs):
            raise ViewError(
                f"The view asks for epochs {list(epochs)}; this run has {known}: choose one or more of these, each once."
            )
        return [known.index(epoch) for epoch in epochs]

    def _layer(self, name: str) -> int:
        if name not in self.layers:
            raise ViewError(f"This run has no layer '{name}'; choose from {', '.join(self.layers)}.")
        return self.layers.index(name)
