"""Views of classification and regression against one backward pass per sample, and what each kind of kernel leaves free."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from tracin_core.engine import in_memory
from tracin_core.engine.classification import logit_cotangent, output_kernel_by_layer, tangent_diagonal_blocks
from tracin_core.engine.kernel import layer_groups, model_outputs, tangent_kernel_by_layer
from tracin_core.errors import OutputShapeError, ViewError
from tracin_core.scores.comparison import Methods
from tracin_core.scores.examples import Cotangent
from tracin_core.scores.influence import Kernels, block_self_influence
from tracin_core.scores.objectives import SampleObjective
from tracin_core.scores.representer import representer_points
from tracin_core.scores.retraining import Training
from tracin_core.scores.sample_losses import SampleLoss, label_logit, sample_derivative, sample_loss
from tracin_core.scores.view import View

FLOAT32 = {"rtol": 2e-5, "atol": 2e-5}  # kernels are stored in float32
CLASSES, TRAIN, TEST, CHECKPOINTS = 3, 7, 4, 2
WEIGHTS = np.array([0.5, 2.0])
LABELS = {"train": torch.tensor([0, 1, 2, 0, 1, 2, 0]), "test": torch.tensor([2, 0, 1, 1])}
INPUTS = {
    side: torch.randn(count, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(place))
    for place, (side, count) in enumerate({"train": TRAIN, "test": TEST}.items())
}


def models(outputs: int) -> list[nn.Module]:
    """The same network at two checkpoints."""
    found = []
    for seed in range(CHECKPOINTS):
        torch.manual_seed(seed)
        found.append(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, outputs)).double())
    return found


def samples(side: str, **columns: Any) -> pd.DataFrame:
    ids = [f"{side}{place}" for place in range(len(LABELS[side]))]
    return pd.DataFrame({"id": ids, "label": LABELS[side].numpy(), **columns})


def kernels(cotangent: Cotangent, networks: list[nn.Module]) -> Kernels:
    parts = []
    for model in networks:
        outputs = {side: model_outputs(model, values) for side, values in INPUTS.items()}
        train, test = INPUTS["train"], INPUTS["test"]
        if cotangent == "outputs":
            products = [output_kernel_by_layer(model, *sides) for sides in ((train,), (test, train), (test,))]
        else:
            c = {side: logit_cotangent(outputs[side], LABELS[side]) if cotangent == "label_logit" else None for side in INPUTS}
            products = [
                tangent_kernel_by_layer(model, train, left_cotangent=c["train"]),
                tangent_kernel_by_layer(model, test, train, left_cotangent=c["test"], right_cotangent=c["train"]),
                tangent_kernel_by_layer(model, test, left_cotangent=c["test"]),
            ]
        plain = [outputs[side].squeeze(-1) for side in ("train", "test")]
        parts.append([part.numpy() for part in (*products, *plain)])
    return Kernels(*(np.stack(part) for part in zip(*parts, strict=True)))


def torch_loss(loss: SampleLoss, outputs: Tensor, target: Tensor) -> Tensor:
    if loss.name == "cross_entropy":
        return nn.functional.cross_entropy(outputs, target)
    if loss.name == "label_smoothing":
        return nn.functional.cross_entropy(outputs, target, label_smoothing=loss.smoothing)
    if loss.name == "focal":
        p = outputs.softmax(-1)[0, target[0]]
        return -((1 - p) ** loss.gamma) * p.log()
    if loss.name == "huber":
        return nn.functional.huber_loss(outputs.squeeze(-1), target, delta=loss.delta)
    return nn.functional.mse_loss(outputs.squeeze(-1), target)


def gradients(loss: SampleLoss, networks: list[nn.Module], side: str, targets: Tensor) -> np.ndarray:
    """[C, n, parameters], one backward pass per sample."""
    rows = []
    for model in networks:
        for value, target in zip(INPUTS[side], targets, strict=True):
            grads = torch.autograd.grad(torch_loss(loss, model(value[None]), target[None]), list(model.parameters()))
            rows.append(torch.cat([grad.flatten() for grad in grads]).numpy())
    return np.stack(rows).reshape(len(networks), len(targets), -1)


def slow(train: np.ndarray, test: np.ndarray) -> np.ndarray:
    return np.einsum("c,cnp,cmp->nm", WEIGHTS, train, test)


def view(cotangent: Cotangent, loss: SampleLoss, networks: list[nn.Module], **settings: Any) -> View:
    settings = {"checkpoint_weights": WEIGHTS, "checkpoint_names": ["a", "b"], **settings}
    sides = settings.pop("sides", (samples("train"), samples("test")))
    return View.of_samples(*sides, kernels(cotangent, networks), loss=loss, cotangent=cotangent, **settings)


@pytest.mark.parametrize(
    ("cotangent", "name"),
    [
        ("label_logit", "cross_entropy"),
        ("label_logit", "focal"),
        ("outputs", "cross_entropy"),
        ("outputs", "label_smoothing"),
        ("outputs", "focal"),
    ],
)
def test_classification_is_one_backward_pass_per_sample(cotangent: Cotangent, name: Any) -> None:
    """Influence, self-influence, cosine and removal; every loss of p_y from the one kernel, any loss where all outputs are kept."""
    networks, loss = models(CLASSES), SampleLoss(name)
    train, test = (gradients(loss, networks, side, LABELS[side]) for side in ("train", "test"))
    shown = view(cotangent, loss, networks)
    np.testing.assert_allclose(shown.influence(), slow(train, test), **FLOAT32)
    np.testing.assert_allclose(shown.self_influence(), np.diagonal(slow(train, train)), **FLOAT32)
    np.testing.assert_allclose(shown.sample_influence(), shown.influence(), **FLOAT32)
    lengths = np.sqrt(np.outer(np.diagonal(slow(train, train)), np.diagonal(slow(test, test))))
    np.testing.assert_allclose(
        view(cotangent, loss, networks, measure="cosine").influence(), slow(train, test) / lengths, **FLOAT32
    )
    proponents, opponents = shown.top("test1", 3)
    assert list(proponents.columns) == ["id", "label", "influence", "percentile", "self_influence", "contributions"]
    assert (proponents["influence"] > 0).all()
    assert (opponents["influence"] < 0).all()


@pytest.mark.parametrize("name", ["squared_error", "huber"])
def test_regression_is_one_backward_pass_per_sample(name: Any) -> None:
    networks, loss = models(1), SampleLoss(name)
    values = {side: LABELS[side].double() * 1.5 - 1 for side in LABELS}
    train, test = (gradients(loss, networks, side, values[side]) for side in ("train", "test"))
    sides = tuple(samples(side, value=values[side].numpy()) for side in ("train", "test"))
    shown = view("score", loss, networks, sides=sides, target="value")
    np.testing.assert_allclose(shown.influence(), slow(train, test), **FLOAT32)
    np.testing.assert_allclose(shown.self_influence(), np.diagonal(slow(train, train)), **FLOAT32)


def test_the_score_difference_of_a_class_never_dies() -> None:
    """-logit(p_y), by its own backward pass, from either kernel."""
    networks, loss = models(CLASSES), SampleLoss()
    train = gradients(loss, networks, "train", LABELS["train"])
    rows = []
    for model in networks:
        for value, label in zip(INPUTS["test"], LABELS["test"], strict=True):
            p = model(value[None]).softmax(-1)[0, label]
            grads = torch.autograd.grad(-torch.log(p / (1 - p)), list(model.parameters()))
            rows.append(torch.cat([grad.flatten() for grad in grads]).numpy())
    expected = slow(train, np.stack(rows).reshape(CHECKPOINTS, TEST, -1))
    for cotangent in ("label_logit", "outputs"):
        shown = view(cotangent, loss, networks, test_quantity="score_difference")
        np.testing.assert_allclose(shown.influence(), expected, **FLOAT32)


def test_other_labels_are_free_where_all_outputs_are_kept() -> None:
    """For every sample and label: the gradient under that label, minus the one under its own."""
    networks, loss = models(CLASSES), SampleLoss()
    test = gradients(loss, networks, "test", LABELS["test"])
    own = slow(gradients(loss, networks, "train", LABELS["train"]), test)
    effects = view("outputs", loss, networks).relabel_effects(pd.DataFrame(), range(CLASSES), "test2")
    for label in range(CLASSES):
        other = slow(gradients(loss, networks, "train", torch.full((TRAIN,), label)), test)
        np.testing.assert_allclose(effects[label], (other - own)[:, 2], **FLOAT32)


def test_diagonal_blocks_give_self_influence_under_any_loss_and_label() -> None:
    networks, loss = models(CLASSES), SampleLoss("label_smoothing")
    labels = torch.tensor([2, 2, 1, 1, 0, 0, 1])
    expected = np.diagonal(slow(*[gradients(loss, networks, "train", labels)] * 2))
    blocks = np.stack([tangent_diagonal_blocks(model, INPUTS["train"]).numpy() for model in networks])
    outputs = [model_outputs(model, INPUTS["train"]).numpy() for model in networks]
    slopes = np.stack([sample_derivative(loss, values, labels.numpy()) for values in outputs])
    np.testing.assert_allclose(block_self_influence(blocks, slopes, WEIGHTS), expected, rtol=1e-9)


def test_the_harm_rule_lists_samples() -> None:
    shown = view("label_logit", SampleLoss(), models(CLASSES))
    scores = shown.influence()
    line = float(np.quantile(scores, 0.3))
    listed = shown.exclusions(line, 2, None)
    expected = [name for name, row in zip(shown.train_samples["id"], scores, strict=True) if (row < line).sum() >= 2]
    assert sorted(listed["id"]) == sorted(expected)
    assert shown.sweep(2).counts([line])["samples"][0] == len(expected)
    assert shown.removed(listed).sum() == len(expected)


@pytest.mark.parametrize(
    ("cotangent", "loss", "fixed"),
    [
        ("outputs", SampleLoss(), {"trak", "representer_points"}),
        ("score", SampleLoss("binary_cross_entropy"), set()),
        ("label_logit", SampleLoss(), {"loss", "relabel", "gauss_newton", "linearised_retraining", "representer_points"}),
        ("score", SampleLoss("huber"), {"relabel", "score_difference", "trak"}),
    ],
)
def test_each_kernel_says_which_what_ifs_it_leaves_free(cotangent: Cotangent, loss: SampleLoss, fixed: set[str]) -> None:
    """And what it says is so: a what-if that is called unavailable refuses, an available one answers."""
    networks = models(CLASSES if cotangent != "score" else 1)
    sides = tuple(samples(side, value=LABELS[side].numpy() / 2, binary=LABELS[side].numpy() % 2) for side in ("train", "test"))
    target = "value" if not loss.is_of_label else "binary" if cotangent == "score" else "label"
    shown = view(cotangent, loss, networks, sides=sides, target=target)
    table = shown.what_ifs().set_index("what_if")
    assert set(table.index[~table["available"]]) == fixed
    assert (table.loc[sorted(fixed), "why_not"].str.len() > 10).all()
    ask = {
        "relabel": lambda: shown.relabel_effects(pd.DataFrame(), range(2 if target == "binary" else CLASSES)),
        "score_difference": lambda: view(cotangent, loss, networks, sides=sides, target=target, test_quantity="score_difference"),
    }
    for name, work in ask.items():
        if name in fixed:
            with pytest.raises(ViewError):
                work()
        else:
            work()
    outputs = [
        np.stack([model_outputs(model, INPUTS[side]).numpy().squeeze(-1 if cotangent == "score" else ()) for model in networks])
        for side in INPUTS
    ]
    training = Training((0, 1), *outputs, np.array([0.0, 0.01]), 2, TRAIN, "SGD")
    last = view(cotangent, loss, networks, sides=sides, target=target, layers=[1])
    methods = Methods(shown, training, last_layer=last).available().set_index("method")
    for name in ("trak", "linearised_retraining", "representer_points"):
        assert (methods.loc[name, "why_not"] == "") == (name not in fixed), methods.loc[name, "why_not"]
    assert methods.loc["curvature", "why_not"] == ""


def test_what_a_kernel_fixes_is_said_with_what_is_left() -> None:
    networks = models(CLASSES)
    with pytest.raises(ViewError, match=r"fixes each sample's label; the loss label_smoothing.*cross_entropy, focal"):
        view("label_logit", SampleLoss("label_smoothing"), networks)
    with pytest.raises(
        ViewError, match=r"kernel is of logit\(p_y\), which fixes each label; compute a run that.* kernel = .outputs"
    ):
        view("label_logit", SampleLoss(), networks).relabel_effects(pd.DataFrame(), [0])
    with pytest.raises(ViewError, match="7 training positions, but the samples' outputs stand on 21"):
        View.of_samples(
            samples("train"),
            samples("test"),
            kernels("label_logit", networks),
            loss=SampleLoss(),
            cotangent="outputs",
            checkpoint_weights=WEIGHTS,
            checkpoint_names=["a", "b"],
        )
    values = tuple(samples(side, value=LABELS[side].numpy() / 2) for side in ("train", "test"))
    with pytest.raises(ViewError, match="A score difference needs labels"):
        view("score", SampleLoss("huber"), models(1), sides=values, target="value", test_quantity="score_difference")
    with pytest.raises(OutputShapeError, match="one row per sample"):
        output_kernel_by_layer(nn.Unflatten(1, (3, 1)), INPUTS["train"])


@pytest.mark.parametrize(
    ("cotangent", "curvature"), [("outputs", "gauss_newton"), ("outputs", "fisher"), ("label_logit", "fisher")]
)
def test_curvature_of_classes_is_the_inverse_hessian_in_parameter_space(cotangent: Cotangent, curvature: str) -> None:
    """Gauss-Newton of cross-entropy from every output; the empirical Fisher also from the kernel of logit(p_y)."""
    networks, loss, delta = models(CLASSES), SampleLoss(), 0.5
    train, test = (gradients(loss, networks, side, LABELS[side]) for side in ("train", "test"))
    shown = view(cotangent, loss, networks)
    outputs = [np.stack([model_outputs(model, INPUTS[side]).numpy() for model in networks]) for side in INPUTS]
    training = Training((0, 1), *outputs, np.array([0.0, 0.01]), 2, TRAIN, "SGD")
    expected = []
    for c, model in enumerate(networks):
        if curvature == "fisher":
            hessian = train[c].T @ train[c]
        else:
            rows = [
                torch.autograd.grad(model(x[None])[0, k], list(model.parameters())) for x in INPUTS["train"] for k in range(CLASSES)
            ]
            j = np.stack([torch.cat([part.flatten() for part in row]).numpy() for row in rows]).reshape(TRAIN, CLASSES, -1)
            p = model(INPUTS["train"]).softmax(-1).detach().numpy()
            middle = p[:, :, None] * np.eye(CLASSES) - p[:, :, None] * p[:, None, :]
            hessian = np.einsum("nap,nab,nbq->pq", j, middle, j)
        damping = delta * np.trace(hessian) / np.linalg.matrix_rank(hessian)
        expected.append(train[c] @ np.linalg.solve(hessian + damping * np.eye(len(hessian)), test[c].T))
    found = Methods(shown, training, curvature=curvature, delta=delta).influence("curvature", "test1")
    wanted = np.mean(expected, axis=0)[:, 1]
    np.testing.assert_allclose(found, wanted, rtol=2e-3, atol=2e-3 * np.abs(wanted).max())


@pytest.mark.parametrize("name", ["binary_cross_entropy", "squared_error"])
def test_representer_points_rise_with_the_loss_that_a_refit_without_them_shows(name: Any) -> None:
    """For both labels, and for numbers above and below the prediction."""
    networks, loss = models(1), SampleLoss(name)
    sides = tuple(samples(side, aim=LABELS[side].numpy() % 2) for side in ("train", "test"))
    shown = view("score", loss, networks, sides=sides, target="aim")
    outputs = [np.stack([model_outputs(model, INPUTS[side]).numpy().squeeze(-1) for model in networks]) for side in INPUTS]
    training = Training((0, 1), *outputs, np.array([0.0, 0.01]), 2, TRAIN, "SGD")
    last = view("score", loss, networks, sides=sides, target="aim", layers=[1])
    methods = Methods(shown, training, last_layer=last, ridge=0.05)
    objective = SampleObjective(loss, sides[0]["aim"].to_numpy())
    kernel = last.kernels.train_train[-1], last.kernels.test_train[-1]

    def refitted(left: np.ndarray) -> np.ndarray:
        ridge = 0.05 * TRAIN / left.sum()  # the same pull of the ridge, one example fewer
        found = representer_points(*kernel, objective, ridge=ridge, multiplicity=left)
        return sample_loss(loss, found.test, sides[1]["aim"].to_numpy())

    whole = refitted(np.ones(TRAIN))
    rises = np.stack([refitted(np.arange(TRAIN) != out) - whole for out in range(TRAIN)])
    for column, test in enumerate(shown.test_pairs["id"]):
        assert np.corrcoef(methods.influence("representer_points", test), rises[:, column])[0, 1] > 0.3, test


@pytest.mark.parametrize("name", ["binary_cross_entropy", "squared_error"])
def test_a_representer_of_an_example_itself_is_what_it_adds_to_its_own_margin(name: Any) -> None:
    networks, loss = models(1), SampleLoss(name)
    sides = tuple(samples(side, aim=LABELS[side].numpy() % 2) for side in ("train", "test"))
    outputs = [np.stack([model_outputs(model, INPUTS[side]).numpy().squeeze(-1) for model in networks]) for side in INPUTS]
    training = Training((0, 1), *outputs, np.array([0.0, 0.01]), 2, TRAIN, "SGD")
    last = view("score", loss, networks, sides=sides, target="aim", layers=[1])
    methods = Methods(view("score", loss, networks, sides=sides, target="aim"), training, last_layer=last, ridge=0.05)
    kernel, aim = last.kernels.train_train[-1], sides[0]["aim"].to_numpy()
    refitted = representer_points(kernel, kernel, SampleObjective(loss, aim), ridge=0.05)
    towards = 2.0 * aim - 1 if loss.is_of_label else -sample_derivative(loss, refitted.train, aim)
    np.testing.assert_allclose(
        methods.self_influence("representer_points"), towards * np.diag(refitted.values), rtol=1e-6, atol=1e-9
    )


def test_representers_of_classes_are_those_of_the_last_layers_features() -> None:
    """The engine's products of features are those of what enters the layer; and the refit is that of every output at once."""
    networks, ridge = models(CLASSES), 0.05
    learnt, told = networks[-1], SampleLoss()
    sides = [in_memory.Gathered(INPUTS[side], samples(side)) for side in ("train", "test")]
    settings = in_memory.KernelSettings("label_logit", layer_groups(learnt), 32)
    snapshot = in_memory.snapshots(learnt, [learnt.state_dict()])[0]
    found = in_memory.features_of(learnt, snapshot, settings, *sides)
    assert found is not None
    h = [np.c_[learnt[:2](INPUTS[side]).detach().numpy(), np.ones(len(INPUTS[side]))] for side in ("train", "test")]
    for products, one in zip(found, h, strict=True):
        np.testing.assert_allclose(products, one @ h[0].T, rtol=1e-6)
    outputs = [np.stack([model_outputs(model, INPUTS[side]).numpy() for model in networks]) for side in INPUTS]
    training = Training((0, 1), *outputs, np.array([0.0, 0.01]), 2, TRAIN, "SGD")
    methods = Methods(view("label_logit", told, networks), training, features=found, ridge=ridge)
    labels = {side: LABELS[side].numpy() for side in LABELS}
    objective, each = SampleObjective(told, labels["train"], outputs=CLASSES), np.eye(CLASSES)
    for side, row in (("train", 0), ("test", 1)):
        whole = representer_points(np.kron(h[0] @ h[0].T, each), np.kron(h[row] @ h[0].T, each), objective, ridge=ridge)
        towards = whole.values.reshape(TRAIN, -1, CLASSES)[:, np.arange(len(labels[side])), labels[side]]
        if side == "train":
            np.testing.assert_allclose(methods.self_influence("representer_points"), np.diag(towards), rtol=0, atol=1e-5)
        else:
            told_of = [methods.influence("representer_points", f"test{place}") for place in range(TEST)]
            np.testing.assert_allclose(np.stack(told_of, axis=1), towards, rtol=0, atol=1e-5)


class Backwards(nn.Module):
    """The layer that gives the outputs is named before those that feed it, and one of these has its weight."""

    def __init__(self, *, bias: bool) -> None:
        super().__init__()
        self.head, self.below, self.body = nn.Linear(3, 3, bias=bias), nn.Linear(3, 3), nn.Linear(3, 3)
        self.below.weight = self.head.weight

    def features(self, x: Tensor) -> Tensor:
        return torch.tanh(self.below(torch.tanh(self.body(x))))

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.features(x))
        return outputs


class Added(nn.Module):
    """A linear layer is last, and its outputs are not the model's."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = x + self.layer(x)
        return outputs


class Bare(nn.Module):
    """Linear, and without a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


def features_of(model: nn.Module) -> Any:
    sides = [in_memory.Gathered(INPUTS[side], samples(side)) for side in ("train", "test")]
    settings = in_memory.KernelSettings("label_logit", layer_groups(model), 3)
    return in_memory.features_of(model, in_memory.snapshots(model, [model.state_dict()])[0], settings, *sides)


@pytest.mark.parametrize("bias", [True, False])
def test_features_are_what_enters_the_layer_that_gives_the_outputs(bias: bool) -> None:
    model = Backwards(bias=bias).double()
    h = [model.features(INPUTS[side]).detach().numpy() for side in ("train", "test")]
    for products, one in zip(features_of(model), h, strict=True):
        np.testing.assert_allclose(products, one @ h[0].T + float(bias), rtol=1e-12)
    alone = nn.Linear(3, CLASSES).double()
    np.testing.assert_allclose(features_of(alone)[0], (INPUTS["train"] @ INPUTS["train"].T + 1).numpy(), rtol=1e-12)


@pytest.mark.parametrize("model", [Added(), Bare(), nn.Sequential(nn.Linear(3, 3), nn.Tanh())])
def test_a_model_that_does_not_end_in_a_linear_layer_has_no_such_features(model: nn.Module) -> None:
    networks = [model.double(), model.double()]
    assert features_of(networks[-1]) is None
    outputs = [np.stack([model_outputs(each, INPUTS[side]).numpy() for each in networks]) for side in INPUTS]
    methods = Methods(
        view("label_logit", SampleLoss(), networks), Training((0, 1), *outputs, np.array([0.0, 0.01]), 2, TRAIN, "SGD")
    )
    with pytest.raises(ViewError, match="which a calibration has, of a model whose outputs a linear layer gives"):
        methods.self_influence("representer_points")


def test_a_preview_of_classes_keeps_the_test_quantity() -> None:
    networks, loss = models(CLASSES), SampleLoss()
    shown = view("outputs", loss, networks, test_quantity="score_difference")
    outputs = [np.stack([model_outputs(model, INPUTS[side]).numpy() for model in networks]) for side in INPUTS]
    training = Training((0, 1), *outputs, np.array([0.0, 1e-9]), 2, TRAIN, "SGD")
    found = Methods(shown, training).replay.preview(np.arange(TRAIN) == 0)["loss"]
    np.testing.assert_allclose(found, -label_logit(outputs[1][0], LABELS["test"].numpy()), rtol=1e-5, atol=1e-6)
