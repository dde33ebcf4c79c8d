"""What-ifs of a run: each view equals a fresh run with those settings, and none computes a kernel block."""

from collections.abc import Iterator
from typing import Any

import lab
import numpy as np
import pytest

from tracin_core.errors import NotFoundError, UnknownSampleError, ViewError
from tracin_core.recipe import Recipe
from tracin_core.records.runs import Run
from tracin_core.records.workspace import Workspace


@pytest.fixture(scope="module")
def studio(shelf: lab.Shelf, tmp_path_factory: pytest.TempPathFactory) -> Iterator[lab.Studio]:
    made = shelf.studio(tmp_path_factory.mktemp("workspace"), epochs=3)
    yield made
    lab.stop_worker(made.place)


@pytest.fixture(scope="module")
def place(studio: lab.Studio) -> Workspace:
    return studio.place


@pytest.fixture(scope="module")
def run(studio: lab.Studio) -> Run:
    return studio.run


@pytest.fixture(scope="module")
def recipe(run: Run) -> Recipe:
    return run.recipe


def changed(recipe: Recipe, **sections: dict[str, Any]) -> Recipe:
    settings = recipe.to_dict()
    return Recipe.from_dict({**settings, **{name: {**settings.get(name, {}), **section} for name, section in sections.items()}})


@pytest.mark.parametrize(
    ("asked", "section"),
    [
        ({"loss": "logistic", "margin": 0.5}, {"task": {"loss": "logistic", "margin": 0.5}}),
        ({"loss": "squared_hinge"}, {"task": {"loss": "squared_hinge"}}),
        ({"margin": 1.0, "weights": "learning_rate"}, {"task": {"margin": 1.0}}),
        (
            {"loss": "ghm", "ghm_bins": 7, "ghm_alpha": 0.5, "ghm_batch": 16},
            {"task": {"loss": "ghm", "ghm_bins": 7, "ghm_alpha": 0.5, "ghm_batch": 16}},
        ),
        ({"loss": "ghm_legacy"}, {"task": {"loss": "ghm_legacy"}}),
        ({"checkpoints": [1, 3], "weights": "step_sum"}, {"checkpoints": {"epochs": [1, 3]}}),
        ({"checkpoints": [3], "measure": "cosine"}, {"checkpoints": {"epochs": [3]}}),
        ({"measure": "cosine_mean"}, {}),
    ],
)
def test_a_view_equals_a_fresh_run_with_its_settings(
    run: Run, place: Workspace, recipe: Recipe, asked: dict[str, Any], section: dict[str, Any]
) -> None:
    blocks = len(place.catalogue.read("SELECT name FROM block"))
    view = run.view(**asked)
    fresh = place.compute(changed(recipe, **section))
    same = {name: asked[name] for name in ("weights", "measure") if name in asked}
    np.testing.assert_array_equal(view.influence(), fresh.view(**same).influence())
    np.testing.assert_array_equal(view.self_influence(), fresh.view(**same).self_influence())
    assert np.nanmax(np.abs(view.influence())) > 0
    assert len(place.catalogue.read("SELECT name FROM block")) == blocks


def test_a_universe_is_viewed_as_drawn_with_the_densities_of_the_one_trained_on(run: Run, place: Workspace, recipe: Recipe) -> None:
    """The seed is the recorded one; a run whose recipe says `drawn` reads GHM weights from drawn pairs, whatever it shows."""
    drawn = run.view(pairs="drawn")
    assert drawn.train_pairs["multiplicity"].max() > 1
    assert drawn.train_pairs.equals(run.view(pairs="drawn", draw_seed=42).train_pairs)
    assert not drawn.train_pairs.equals(run.view(pairs="drawn", draw_seed=1).train_pairs)
    ghm = {"loss": "ghm", "margin": 1.0}
    trained = place.compute(changed(recipe, task={"pairs": "drawn"}))
    draws = trained.trained_draws
    labels = trained.splits["train"]["label"].to_numpy()
    different = labels[draws["first"]] != labels[draws["second"]]
    assert trained.view(**ghm).ghm_tables[0].total == draws["multiplicity"][different].sum()
    assert run.view(**ghm, pairs="drawn").ghm_tables[0].total == len(run.train_pairs)


def test_listed_pairs_are_viewed_alone(run: Run) -> None:
    some = run.train_pairs.iloc[[3, 1]]
    view = run.view(pairs=list(zip(some["id2"], some["id1"], strict=True)))
    assert set(view.train_pairs["id"]) == set(some["id"])
    whole = run.view()
    np.testing.assert_allclose(view.influence(), whole.influence()[[whole.train_row(pair) for pair in view.train_pairs["id"]]])


def test_relabelling_rebuilds_pairs_on_either_side(run: Run) -> None:
    train, test = run.splits["train"], run.splits["validation"]
    sample, other = train["id"][0], test["id"][0]
    label = int(train["label"].max())
    counts = run.relabel_counts({sample: label})
    view = run.view(relabel={sample: label})
    assert len(view.train_pairs) == len(run.train_pairs) + counts.born - counts.vanished
    assert counts.turned + counts.unchanged + counts.vanished == (run.train_pairs[["id1", "id2"]] == sample).any(axis=1).sum()
    turned = run.view(relabel={other: int(test["label"].max())})
    assert len(turned.test_pairs) != len(run.test_pairs) or not turned.test_pairs["target"].equals(run.test_pairs["target"])
    effects = run.relabel_effects()
    assert effects.shape == (len(train), len(run.classes))
    place = train.index[0]
    draws = run.draws()["train"]
    np.testing.assert_allclose(
        effects.loc[sample, label],
        (run.view(relabel={sample: label}).sample_influence() - run.view().sample_influence())[place][
            ~run.view().dead_tests
        ].mean(),
    )
    assert run.view().relabel_effects(draws, sorted(run.classes)).equals(effects)


@pytest.mark.parametrize(
    ("asked", "kind", "told"),
    [
        ({"checkpoints": [9]}, ViewError, r"epochs \[9\]; this run has \[0, 1, 2, 3\]"),
        ({"checkpoints": []}, ViewError, "choose one or more"),
        ({"margin": -1.0}, ViewError, "margin is -1.0"),
        ({"margin": float("nan")}, ViewError, "margin is nan"),
        ({"margin": "wide"}, ViewError, "margin is wide"),
        ({"loss": "hinge"}, ViewError, "no loss 'hinge'; choose from margin"),
        ({"weights": [1.0]}, ViewError, "1 checkpoint weights were given for 3"),
        ({"weights": "fair"}, ViewError, "choose uniform, learning_rate, step_sum, recency"),
        ({"weights": "recency"}, ViewError, "give a half_life"),
        ({"layers": ["nowhere"]}, ViewError, "no layer 'nowhere'; choose from"),
        ({"layers": []}, ViewError, r"layers \[\]"),
        ({"pairs": "some"}, ViewError, "no pair universe 'some'; choose all, drawn"),
        ({"pairs": [("a", "b")]}, UnknownSampleError, "names 'a'"),
        ({"relabel": {"nobody": 1}}, NotFoundError, "no training sample 'nobody'"),
        ({"measure": "size"}, ViewError, "no measure 'size'"),
        ({"test_quantity": "accuracy"}, ViewError, "no test quantity 'accuracy'"),
    ],
)
def test_a_setting_without_meaning_is_refused_with_what_exists(
    run: Run, asked: dict[str, Any], kind: type[Exception], told: str
) -> None:
    with pytest.raises(kind, match=told):
        run.view(**asked)


def test_a_selection_of_no_pairs_is_refused(run: Run) -> None:
    same = run.splits["train"].groupby("label")["id"].apply(list).iloc[0][:2]
    with pytest.raises(ViewError, match="no training pair is left"):
        run.view(pairs=[tuple(same)])


def test_paths_of_settings_are_kept_apart(run: Run) -> None:
    """A second view does not change the first."""
    first = run.view()
    before = first.influence().copy()
    run.view(loss="logistic", relabel={run.splits["train"]["id"][0]: 0}).influence()
    np.testing.assert_array_equal(first.influence(), before)


def test_the_order_in_which_checkpoints_are_named_does_not_matter(run: Run) -> None:
    """Weights given by hand go with their checkpoints; rules and `last` mean epochs."""
    for weights in ("step_sum", "learning_rate"):
        np.testing.assert_array_equal(
            run.view(checkpoints=[3, 1, 2], weights=weights).influence(),
            run.view(checkpoints=[1, 2, 3], weights=weights).influence(),
        )
    by_hand = run.view(checkpoints=[3, 1], weights=[5.0, 1.0])
    assert by_hand.checkpoint_names == ["epoch 1", "epoch 3"]
    assert by_hand.checkpoint_weights.tolist() == [1.0, 5.0]
    losses = [run.methods(checkpoints=epochs).self_influence("last_loss") for epochs in ([3, 1], [1, 3])]
    np.testing.assert_array_equal(*losses)


def test_pairs_that_were_never_drawn_are_guests_of_the_density_they_were_not_counted_in(
    run: Run, place: Workspace, recipe: Recipe
) -> None:
    """A drawn training, viewed under all pairs: members are those that were drawn."""
    trained = place.compute(changed(recipe, task={"pairs": "drawn", "loss": "ghm", "margin": 1.0}))
    drawn = set(trained.view(pairs="drawn").train_pairs["id"])
    view = trained.view()
    assert view.train.strangers.tolist() == [pair not in drawn for pair in view.train_pairs["id"]]
    assert 0 < view.train.strangers.sum() < len(view.train_pairs)
    assert trained.view(pairs="drawn").train.strangers.sum() == 0


def test_effects_of_labels_start_from_the_labels_trained_on(run: Run) -> None:
    with pytest.raises(ViewError, match="leave relabel out"):
        run.relabel_effects(relabel={run.splits["train"]["id"][0]: 1})


def test_methods_take_the_measure_dot(run: Run) -> None:
    with pytest.raises(ViewError, match="this view measures cosine; choose the measure dot"):
        run.methods(measure="cosine")
