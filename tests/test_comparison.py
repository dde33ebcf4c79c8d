"""Methods on a view against explicit gradients in parameter space, and on a real run."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import lab
import numpy as np
import pandas as pd
import pytest
import scipy
from influence_cases import CHECKPOINTS, FLOAT64, TRAIN, Case, explicit, make_case

from tracin_core.data.samples import pair_table, pairs_of
from tracin_core.errors import NotFoundError, ViewError
from tracin_core.records.runs import Run
from tracin_core.records.stability import HALVINGS, checkpoint_parts, compare_parts, halvings
from tracin_core.scores.comparison import Methods
from tracin_core.scores.curvature import pair_laplacian
from tracin_core.scores.losses import PairLoss
from tracin_core.scores.methods import METHODS
from tracin_core.scores.objectives import PairObjective
from tracin_core.scores.representer import DEFAULT_RIDGE, representer_points
from tracin_core.scores.retraining import Training

LOGISTIC = PairLoss(name="logistic", margin=1.0)


def training_of(case: Case, **change: Any) -> Training:
    given_: dict[str, Any] = {
        "epochs": (0, 1, 2),
        "train_outputs": case.train_outputs,
        "test_outputs": case.test_outputs,
        "rate_sums": np.array([0.0, 0.001, 0.002]),
        "steps_per_epoch": 2,
        "examples": 16,
        "optimizer": "SGD",
    }
    return Training(**{**given_, **change})


def methods_of(case: Case, loss: PairLoss = LOGISTIC, **settings: Any) -> Methods:
    view = case.view(loss)
    return Methods(view, settings.pop("training", training_of(case)), last_layer=case.view(loss, layers=[1]), **settings)


def flat(gradients: np.ndarray) -> np.ndarray:
    """[C, L, n, parameters] -> [C, n, all parameters]."""
    return np.concatenate(list(gradients.transpose(1, 0, 2, 3)), axis=2)


def inverse_hessians(case: Case, methods: Methods, curvature: Callable[[int], np.ndarray], delta: float) -> list[np.ndarray]:
    """(J^T L J + mu I)^-1 in parameter space, mu = delta trace / rank, at each checkpoint."""
    found = []
    for c, j in enumerate(flat(case.train_gradients)):
        h = j.T @ curvature(c) @ j
        mu = delta * np.trace(h) / np.linalg.matrix_rank(h)
        found.append(np.linalg.inv(h + mu * np.eye(len(h))))
    return found


@pytest.mark.parametrize("name", ["logistic", "squared_hinge", "margin"])
def test_curvature_is_the_inverse_hessian_in_parameter_space(name: Any) -> None:
    """K_mu without parameters equals g'^T H^-1 g with them, averaged over checkpoints; a hinge takes its active pairs."""
    case, loss = make_case(1), PairLoss(name=name, margin=8.0)
    methods = methods_of(case, loss, delta=0.7)
    view = methods.view
    inverse = inverse_hessians(case, methods, methods.curvature_at, 0.7)
    train, test = explicit(view, case, "train"), explicit(view, case, "test")
    expected = np.mean([train[c] @ inverse[c] @ test[c].T for c in range(CHECKPOINTS)], axis=0)
    own = np.mean([np.einsum("np,pq,nq->n", train[c], inverse[c], train[c]) for c in range(CHECKPOINTS)], axis=0)
    names = view.test_pairs["id"]
    scale = np.abs(expected).max()
    for column in (0, 3):
        np.testing.assert_allclose(methods.influence("curvature", names[column]), expected[:, column], rtol=1e-4, atol=1e-5 * scale)
        lengths = np.sqrt(own)
        ratio = np.divide(expected[:, column], lengths, out=np.full(len(own), np.nan), where=lengths > 0)
        np.testing.assert_allclose(
            methods.influence("l_relatif", names[column]), ratio, rtol=1e-3, atol=1e-5 * np.nanmax(np.abs(ratio))
        )
    np.testing.assert_allclose(methods.self_influence("curvature"), own, rtol=1e-4, atol=1e-5 * own.max())


def test_a_hinges_curvature_is_that_of_its_active_pairs() -> None:
    case, loss = make_case(1), PairLoss(margin=8.0)
    methods = methods_of(case, loss)
    pairs = methods.view.train_pairs
    for c in range(CHECKPOINTS):
        active = (methods.view.train_derivatives[c] != 0).astype(float)
        np.testing.assert_array_equal(methods.curvature_at(c), pair_laplacian(pairs["first"], pairs["second"], active, TRAIN))


def test_a_mapped_view_answers_every_question_on_the_new_kernels() -> None:
    case = make_case(2)
    methods = methods_of(case)
    mapped = methods.mapped("curvature")
    test = mapped.test_pairs["id"][1]
    np.testing.assert_allclose(mapped.influence()[:, 1], methods.influence("curvature", test), **FLOAT64)
    top, _ = mapped.top(test, 3)
    assert top["influence"].iloc[0] == pytest.approx(methods.influence("curvature", test).max())
    assert methods.mapped("tracin") is methods.view
    line = mapped.suggested_threshold(1)
    assert len(mapped.exclusions(line, 1, None)) == mapped.sweep(1).counts([line])["pairs"][0]
    np.testing.assert_allclose(
        sum(mapped.contributions(mapped.train_pairs["id"][4], test)), methods.influence("curvature", test)[4], **FLOAT64
    )


def test_the_last_checkpoint_is_a_view_of_it_alone() -> None:
    case = make_case(3)
    methods = methods_of(case)
    alone = case.view(LOGISTIC, kernels=case.kernels.at([2]), checkpoint_weights=np.ones(1), checkpoint_names=["last"])
    np.testing.assert_allclose(methods.self_influence("last_checkpoint"), alone.self_influence(), **FLOAT64)
    test = alone.test_pairs["id"][2]
    np.testing.assert_allclose(methods.influence("last_checkpoint", test), alone.influence(test), **FLOAT64)
    cosine = case.view(LOGISTIC, measure="cosine").influence(test)
    np.testing.assert_allclose(methods.influence("cosine", test), cosine, **FLOAT64)


def test_trak_is_its_formula_in_parameter_space() -> None:
    """mean_c (grad f'^T H^-1 grad f) mean_c (1 - p), H of the margins' own Laplacian."""
    case = make_case(4)
    methods = methods_of(case, delta=0.5)
    view = methods.view

    def margins(gradients: np.ndarray, pairs: pd.DataFrame) -> np.ndarray:
        target = pairs["target"].to_numpy()[None, :, None]
        return target * (flat(gradients)[:, pairs["first"]] - flat(gradients)[:, pairs["second"]])

    train, test = margins(case.train_gradients, view.train_pairs), margins(case.test_gradients, view.test_pairs)
    ones = np.ones(len(view.train_pairs))
    laplacian = pair_laplacian(view.train_pairs["first"], view.train_pairs["second"], ones, TRAIN)
    inverse = inverse_hessians(case, methods, lambda c: laplacian, 0.5)
    slopes = np.abs(view.train_derivatives).mean(axis=0)
    expected = np.mean([train[c] @ inverse[c] @ test[c].T for c in range(CHECKPOINTS)], axis=0) * slopes[:, None]
    found = methods.influence("trak", view.test_pairs["id"][3])
    np.testing.assert_allclose(found, expected[:, 3], rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_baselines_are_losses_and_chance() -> None:
    case = make_case(5)
    methods = methods_of(case, seed=3)
    losses = methods.view.train_losses
    np.testing.assert_array_equal(methods.self_influence("last_loss"), losses[-1])
    np.testing.assert_allclose(methods.self_influence("mean_loss"), losses.mean(axis=0))
    np.testing.assert_array_equal(methods.self_influence("random"), methods_of(case, seed=3).self_influence("random"))
    assert not np.array_equal(methods.self_influence("random"), methods_of(case, seed=4).self_influence("random"))


def test_what_a_run_lacks_is_a_reason_and_not_a_number() -> None:
    case = make_case(6)
    full = methods_of(case).available().set_index("method")
    assert full.index.tolist() == list(METHODS)
    assert (full["why_not"] == "").all()
    lacking = {
        "Adam": training_of(case, optimizer="Adam"),
        "epoch 0": training_of(case, epochs=(1, 2, 3)),
        "no batch size": training_of(case, rate_sums=None, steps_per_epoch=None, missing="no batch size is recorded."),
    }
    for told, training in lacking.items():
        table = methods_of(case, training=training).available().set_index("method")
        assert told in table.loc["linearised_retraining", "why_not"]
        assert not table.loc["linearised_retraining", ["self_influence", "influence"]].any()
        assert table.loc["curvature", "influence"]
    hinge = methods_of(case, PairLoss(margin=4.0)).available().set_index("method")
    assert "choose logistic or squared_hinge" in hinge.loc["representer_points", "why_not"]
    alone = Methods(case.view(LOGISTIC), training_of(case)).available().set_index("method")
    assert "no plain kernel of the last layer" in alone.loc["representer_points", "why_not"]


def test_a_run_without_any_gradient_has_no_curvature_and_says_so() -> None:
    case = make_case(7)
    far = replace(case, train_outputs=np.float32(90 * case.train_samples["label"].to_numpy())[None].repeat(CHECKPOINTS, axis=0))
    table = methods_of(far, PairLoss(margin=1.0)).available().set_index("method")
    assert "checkpoints has curvature" in table.loc["curvature", "why_not"]


@pytest.mark.parametrize(
    ("ask", "kind", "told"),
    [
        (lambda m: m.self_influence("magic"), ViewError, "no method 'magic'; choose from tracin"),
        (lambda m: m.self_influence("cosine"), ViewError, "cosine has no self-influence; choose from tracin"),
        (lambda m: m.influence("mean_loss", "x0_x1"), ViewError, "mean_loss has no influence on a test"),
        (lambda m: m.influence("tracin", "nobody"), NotFoundError, "no test pair 'nobody'"),
        (lambda m: m.mapped("trak"), ViewError, "no map of kernels; choose from tracin, last_checkpoint"),
        (lambda m: m.replay.preview(np.zeros(3, dtype=bool)), ViewError, "each of 16 training examples"),
        (lambda m: m.replay.preview(np.ones(16, dtype=bool)), ViewError, "leaves none of the 16"),
        (lambda m: Methods(m.view, m.training, delta=0.0), ViewError, "relative damping delta"),
        (lambda m: Methods(m.view, m.training, curvature="steep").decomposed, ViewError, "no curvature 'steep'"),
    ],
)
def test_a_question_without_an_answer_is_refused(ask: Callable[[Methods], object], kind: type[Exception], told: str) -> None:
    with pytest.raises(kind, match=told):
        ask(methods_of(make_case(8)))


# ---- a real run


@pytest.fixture(scope="module")
def run(shelf: lab.Shelf, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return shelf.studio(tmp_path_factory.mktemp("workspace"), epochs=3).run


def test_a_trained_run_has_every_method(run: Run) -> None:
    """Its own training records what replays need: epoch 0, the sum of the rate, batches, momentum."""
    assert run.training.optimizer == "SGD"
    assert run.training.rate_sums[0] == 0
    methods = run.methods(loss="logistic")
    assert (methods.available()["why_not"] == "").all()
    table = methods.compare()
    assert len(table) == len(run.train_pairs)
    assert np.isfinite(table.to_numpy()).all()
    agreement = methods.agreement()
    np.testing.assert_allclose(np.diag(agreement), 1)
    assert agreement.loc["tracin", "curvature"] > agreement.loc["tracin", "random"]


def test_a_preview_is_the_replay_without_those_pairs(run: Run) -> None:
    """Leaving out nothing changes nothing; leaving out a sample's pairs is the row of `sample_rise`."""
    methods = run.methods()
    none = methods.replay.preview(np.zeros(len(run.train_pairs), dtype=bool))
    assert (none["rise"] == 0).all()
    sample = run.splits["train"]["id"][2]
    removed = (run.train_pairs[["id1", "id2"]] == sample).any(axis=1).to_numpy()
    np.testing.assert_allclose(methods.replay.preview(removed)["rise"], methods.replay.sample_rise()[2], rtol=1e-9, atol=1e-12)
    pair = methods.influence("linearised_retraining", run.test_pairs["id"][4])
    one = np.arange(len(run.train_pairs)) == 7
    np.testing.assert_allclose(methods.replay.preview(one)["rise"][4], pair[7], rtol=1e-9, atol=1e-12)


def test_the_damping_is_chosen_by_agreement_with_the_replay(run: Run) -> None:
    methods = run.methods(loss="logistic")
    choice = methods.choose_damping()
    assert choice.delta in choice.tried
    assert choice.tried[choice.delta] == max(choice.tried.values())
    assert choice.rule == "linearised_retraining"


def test_momentum_is_what_the_optimizer_records_and_never_guessed(run: Run) -> None:
    """Its arguments may say nothing; plain SGD alone can be replayed."""
    assert run.training.momentum == 0.9
    told = {**run.manifest.checkpoints[-1]}
    assert told["descent"] == {"momentum": 0.9, "dampening": 0.0, "weight_decay": 0.0, "nesterov": 0.0}
    case = make_case(1)
    for change, why in (({"momentum": None}, "do not record the momentum"), ({"nesterov": True}, "Nesterov")):
        table = methods_of(case, training=training_of(case, **change)).available().set_index("method")
        for name in ("linearised_retraining", "training_time"):
            assert why in table.loc[name, "why_not"]


def test_a_checkpoint_that_a_method_leaves_out_gives_no_test_life() -> None:
    case = make_case(3)
    view = case.view(PairLoss(margin=0.0), checkpoint_weights=np.ones(CHECKPOINTS))
    alone = case.view(PairLoss(margin=0.0), kernels=case.kernels.at([2]), checkpoint_weights=np.ones(1), checkpoint_names=["last"])
    mapped = Methods(view, training_of(case)).mapped("last_checkpoint")
    assert (alone.dead_tests != view.dead_tests).any()
    np.testing.assert_array_equal(mapped.dead_tests, alone.dead_tests)
    np.testing.assert_allclose(mapped.mean_influence(), alone.mean_influence(), **FLOAT64)


def test_one_copy_of_a_drawn_pair_is_left_out_as_its_score_says() -> None:
    """And a sample with all of them."""
    case = make_case(9)
    draws = pd.DataFrame({"first": [0, 1, 2], "second": [3, 4, 6], "multiplicity": [3, 1, 2]})
    pairs = pairs_of(case.train_samples, draws)
    methods = Methods(case.view(LOGISTIC, train_pairs=pairs), training_of(case))
    test = methods.view.test_pairs["id"][1]
    single = pairs.assign(multiplicity=[2, 1, 2])
    fewer = Methods(case.view(LOGISTIC, train_pairs=single), training_of(case))
    none = np.zeros(len(pairs), dtype=bool)
    expected = fewer.replay.preview(none)["loss"][1] - methods.replay.preview(none)["loss"][1]
    assert methods.influence("linearised_retraining", test)[0] == pytest.approx(expected, rel=1e-9)


def test_a_list_removes_its_pairs_in_either_orientation_and_no_other() -> None:
    """Joined ids may read alike."""
    case = make_case(2)
    turned = pair_table(case.train_samples, np.array([3, 0, 4]), np.array([0, 3, 1]))
    view = case.view(PairLoss(name="ghm_legacy"), train_pairs=turned)
    assert view.removed(turned.iloc[[1]]).tolist() == [True, True, False]
    odd = case.train_samples.assign(id=["a", "a_b", "b_c", "c", "d", "e", "f"], label=[0, 1, 2, 3, 4, 5, 6])
    alike = pair_table(odd, np.array([0, 1]), np.array([2, 3]))
    both = case.view(train_pairs=alike, train_samples=odd)
    assert alike["id"].tolist() == ["a_b_c", "a_b_c"]
    assert both.removed(alike.iloc[[0]]).tolist() == [True, False]
    with pytest.raises(ViewError, match="'a_b_c' names 2 training pairs"):
        both.contributions("a_b_c", "x0_x1")


def test_a_test_whose_gradient_is_lost_in_rounding_spoils_no_cosine() -> None:
    case = make_case(4)
    same = case.test_gradients.copy()
    same[:, :, 1] = same[:, :, 0]
    view = replace(case, test_gradients=same, weights=np.ones(CHECKPOINTS)).view(LOGISTIC, measure="cosine")
    lost = view.test_row("x0_x1")
    assert not view.dead_tests[lost]
    assert np.isnan(view.influence("x0_x1")).all()
    others = [column for column in range(len(view.test_pairs)) if column != lost]
    np.testing.assert_allclose(view.mean_influence(), view.influence()[:, others].mean(axis=1), **FLOAT64)


def test_theta_relatif_holds_at_low_damping_beside_a_large_common_part() -> None:
    """|H^-1 g| of a pair, whose two gradients share nearly everything."""
    case = make_case(5)
    shared = replace(case, train_gradients=case.train_gradients + 40, test_gradients=case.test_gradients + 40)
    methods = methods_of(shared, delta=0.01)
    test = methods.view.test_pairs["id"][0]
    inverse = inverse_hessians(shared, methods, methods.curvature_at, 0.01)
    train = explicit(methods.view, shared, "train")
    squares = np.mean([((train[c] @ inverse[c]) ** 2).sum(axis=1) for c in range(CHECKPOINTS)], axis=0)
    expected = methods.influence("curvature", test) / np.sqrt(squares)
    np.testing.assert_allclose(
        methods.influence("theta_relatif", test), expected, rtol=0.1
    )  # what float32 kernels leave of it; differences of products gave NaN


def test_a_representer_of_a_pair_itself_is_what_it_adds_to_its_own_margin() -> None:
    case = make_case(1)
    methods = methods_of(case)
    kernel = case.view(LOGISTIC, layers=[1]).kernels.train_train[-1]
    table = methods.view.train_pairs
    first, second, target = (table[name].to_numpy() for name in ("first", "second", "target"))
    objective = PairObjective(LOGISTIC, first, second, target, len(kernel))
    values = representer_points(kernel, kernel, objective, ridge=DEFAULT_RIDGE, multiplicity=methods.view.train.multiplicity).values
    every = np.arange(len(table))
    own = target * (values[every, first] - values[every, second])
    np.testing.assert_allclose(methods.self_influence("representer_points"), own, rtol=1e-6, atol=1e-9 * np.abs(own).max())
    assert (own >= 0).all()


@pytest.mark.parametrize(("count", "halves"), [(1, 0), (2, 0), (3, 2), (4, 4), (5, 4)])
def test_no_part_is_another_by_a_second_name(count: int, halves: int) -> None:
    """A half of two or three checkpoints may be one of them alone again."""
    parts = [tuple(part) for part in checkpoint_parts(range(1, count + 1)).values()]
    assert len(parts) == len(set(parts)) == count + halves


def test_halves_of_the_checkpoints_are_parts_too(run: Run) -> None:
    found = compare_parts(run, "checkpoints")
    rows = found.pairs.set_index("b")["spearman"]
    epochs = list(run.summed_epochs)
    assert len(rows) == len(epochs) + 2 == 5  # two of the four halves are one checkpoint alone
    whole = run.view().self_influence()
    for name, part in {"later half": epochs[len(epochs) // 2 :], "every second": epochs[::2]}.items():
        expected = scipy.stats.spearmanr(whole, run.view(checkpoints=part).self_influence()).statistic
        assert rows[name] == pytest.approx(expected), name


@pytest.mark.parametrize(("count", "ways"), [(3, 0), (4, 3), (5, 3), (10, 126)])
def test_seeds_are_halved_in_every_way_once(count: int, ways: int) -> None:
    found = halvings(count)
    assert len({frozenset(map(frozenset, halves)) for halves in found}) == len(found) == ways
    for halves in found:
        assert sorted(sum(halves, ())) == list(range(2 * (count // 2)))
        assert len({len(half) for half in halves}) == 1


def test_many_seeds_are_halved_in_some_ways_among_all() -> None:
    found = halvings(16)
    assert HALVINGS / 2 < len(found) <= HALVINGS
    assert len({first for first, _ in found}) == len(found)
    assert {place for first, _ in found for place in first} == set(range(16))
