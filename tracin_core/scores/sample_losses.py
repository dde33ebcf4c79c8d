"""Losses of single samples, and their derivatives with respect to the model's outputs. Plain numpy; the losses of pairs are in `losses`.

Of a label y in 0..k-1, with p = softmax(outputs) and f = logit(p_y) = l_y - log sum_{c != y} e^l_c; one output s is two classes with
f = (2 y - 1) s:

    cross_entropy              L = -log p_y                        dL/df = -(1 - p_y)
    binary_cross_entropy       the same of one output s            dL/ds = sigmoid(s) - y
    focal                      L = -(1 - p_y)^gamma log p_y        dL/df = (1 - p_y)^gamma (gamma p_y log p_y - (1 - p_y))
    generalized_cross_entropy  L = (1 - p_y^q) / q                 dL/df = -p_y^q (1 - p_y)
    label_smoothing            L = -sum_c q_c log p_c              dL/dl_c = p_c - q_c,  q_c = (1 - smoothing) [c = y] + smoothing / k

Of a number per output, with r = output - target, summed over a sample's outputs:

    squared_error              L = r^2                             dL/dr = 2 r              (no half, as torch's mse_loss)
    huber                      L = r^2 / 2 where |r| <= delta      dL/dr = r, cut off at -delta and delta
                                   delta (|r| - delta / 2) beyond

Focal: Lin et al. 2017 (arXiv 1708.02002), appendix B. Generalized cross-entropy: Zhang, Sabuncu 2018 (arXiv 1805.07836). Label smoothing:
Szegedy et al. 2016 (arXiv 1512.00567), as torch's cross_entropy has it. Huber 1964, as torch's huber_loss.

The losses of p_y alone (all of a label but label_smoothing) have grad L = dL/df grad f, df/dl_y = 1, df/dl_c = -p_c / (1 - p_y). So the
one kernel with the cotangent of f, which never vanishes, serves them all. f is taken from the outputs, never from p_y: 1 - p_y keeps all
its digits where p_y rounds to 1.

A loss belongs to one sample: where losses meet they are summed, never averaged.
"""

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from scipy import special

from tracin_core.errors import ViewError

Array = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]
SampleLossName = Literal[
    "cross_entropy", "label_smoothing", "focal", "generalized_cross_entropy", "binary_cross_entropy", "squared_error", "huber"
]

# The one setting of each loss that has one: its name, which values have a meaning, and how to say so.
SETTINGS: dict[str, tuple[str, Callable[[float], bool], str]] = {
    "label_smoothing": ("smoothing", lambda value: 0 <= value < 1, "of at least 0 and below 1"),
    "focal": ("gamma", lambda value: 0 <= value < np.inf, "of at least 0"),
    "generalized_cross_entropy": ("q", lambda value: 0 < value <= 1, "above 0 and at most 1"),
    "huber": ("delta", lambda value: 0 < value < np.inf, "above 0"),
}


@dataclass(frozen=True)
class SampleLoss:
    """A loss of samples with its settings.

    Raises:
        ViewError: a setting has no meaning.
    """

    name: SampleLossName = "cross_entropy"
    smoothing: float = 0.1
    gamma: float = 2.0
    q: float = 0.7
    delta: float = 1.0

    def __post_init__(self) -> None:
        if self.name not in get_args(SampleLossName):
            raise ViewError(f"There is no loss '{self.name}'; choose from {', '.join(get_args(SampleLossName))}.")
        for setting, has_meaning, told in SETTINGS.values():
            value = getattr(self, setting)
            if not (isinstance(value, Real) and has_meaning(float(value))):
                raise ViewError(f"{setting} is {value}; choose a number {told}.")

    @property
    def is_of_label(self) -> bool:
        """Targets are labels, not numbers to meet."""
        return self.name not in OF_RESIDUAL

    @property
    def is_of_label_probability(self) -> bool:
        """L depends on p_y alone, so that it scales the kernel of logit(p_y)."""
        return self.name in OF_LABEL_LOGIT

    def describe(self) -> str:
        """Name and the setting that matters for it."""
        if self.name not in SETTINGS:
            return self.name
        setting = SETTINGS[self.name][0]
        return f"{self.name}, {setting} {getattr(self, setting):g}"


def sample_loss(loss: SampleLoss, outputs: npt.ArrayLike, targets: npt.ArrayLike) -> Array:
    """The loss of each sample: [n].

    Args:
        outputs: [n], or [n, k]; an axis of one output counts as none.
        targets: labels [n], or numbers of the shape of the outputs.

    Raises:
        ViewError: outputs and targets do not fit each other or the loss, or are not finite.
    """
    if loss.is_of_label:
        values, labels = _labelled(loss, outputs, targets)
        if loss.name == "label_smoothing":
            return _smoothed(loss, values, labels)[0]
        return OF_LABEL_LOGIT[loss.name](loss, _label_logit(values, labels))[0]
    each = OF_RESIDUAL[loss.name](loss, _residual(loss, outputs, targets))[0]
    return each if each.ndim == 1 else np.asarray(each.sum(axis=1))


def sample_derivative(loss: SampleLoss, outputs: npt.ArrayLike, targets: npt.ArrayLike) -> Array:
    """dL/doutputs of each sample, in the shape of the outputs; arguments and errors as `sample_loss`."""
    shape = np.shape(outputs)
    if not loss.is_of_label:
        return OF_RESIDUAL[loss.name](loss, _residual(loss, outputs, targets))[1].reshape(shape)
    values, labels = _labelled(loss, outputs, targets)
    if loss.name == "label_smoothing":
        return _smoothed(loss, values, labels)[1]
    slope = OF_LABEL_LOGIT[loss.name](loss, _label_logit(values, labels))[1]
    cotangent = _cotangent(values, labels)
    return np.asarray(slope.reshape(-1, *[1] * (cotangent.ndim - 1)) * cotangent).reshape(shape)


def label_logit(outputs: npt.ArrayLike, labels: npt.ArrayLike) -> Array:
    """f = logit(p_y) of each sample: [n]. Arguments and errors as `sample_loss`."""
    return _label_logit(*_labelled(None, outputs, labels))


def label_logit_cotangent(outputs: npt.ArrayLike, labels: npt.ArrayLike) -> Array:
    """df/doutputs, in the shape of the outputs: 1 at the label, minus the softmax over the others elsewhere; 2 y - 1 for one output."""
    return _cotangent(*_labelled(None, outputs, labels)).reshape(np.shape(outputs))


def label_logit_derivative(loss: SampleLoss, outputs: npt.ArrayLike, labels: npt.ArrayLike) -> Array:
    """dL/df of each sample, by which the kernel of `label_logit_cotangent` is scaled: [n], never above 0.

    Raises:
        ViewError: as `sample_loss`, or the loss depends on more than p_y.
    """
    if not loss.is_of_label_probability:
        raise ViewError(
            f"The loss {loss.name} depends on more than its label's probability, so it is no scaling of that probability's kernel; "
            f"choose from {', '.join(OF_LABEL_LOGIT)}, or take the kernel of the loss's own derivative."
        )
    return OF_LABEL_LOGIT[loss.name](loss, _label_logit(*_labelled(loss, outputs, labels)))[1]


# ---- the losses: value and derivative with respect to what they are of ----------------------------------------------------------


def _cross_entropy(loss: SampleLoss, f: Array) -> tuple[Array, Array]:
    return -special.log_expit(f), -special.expit(-f)


def _focal(loss: SampleLoss, f: Array) -> tuple[Array, Array]:
    log_right = special.log_expit(f)
    focus = special.expit(-f) ** loss.gamma
    return -focus * log_right, focus * (loss.gamma * special.expit(f) * log_right - special.expit(-f))


def _generalized_cross_entropy(loss: SampleLoss, f: Array) -> tuple[Array, Array]:
    exponent = loss.q * special.log_expit(f)
    return -np.expm1(exponent) / loss.q, -np.exp(exponent) * special.expit(-f)


def _squared_error(loss: SampleLoss, residual: Array) -> tuple[Array, Array]:
    return residual**2, 2 * residual


def _huber(loss: SampleLoss, residual: Array) -> tuple[Array, Array]:
    near = np.clip(residual, -loss.delta, loss.delta)
    return near * (residual - near / 2), near


Form = Callable[[SampleLoss, Array], tuple[Array, Array]]
OF_LABEL_LOGIT: dict[str, Form] = {
    "cross_entropy": _cross_entropy,
    "focal": _focal,
    "generalized_cross_entropy": _generalized_cross_entropy,
    "binary_cross_entropy": _cross_entropy,
}
OF_RESIDUAL: dict[str, Form] = {"squared_error": _squared_error, "huber": _huber}


def _smoothed(loss: SampleLoss, outputs: Array, labels: Labels) -> tuple[Array, Array]:
    """(1 - smoothing) of the cross-entropy, and smoothing of the mean of -log p_c over all classes: without smoothing, the former."""
    value, slope = _cross_entropy(loss, _label_logit(outputs, labels))
    log_probability = special.log_softmax(outputs, axis=1)
    to_label, to_all = 1 - loss.smoothing, loss.smoothing
    return (
        to_label * value - to_all * log_probability.mean(axis=1),
        to_label * slope[:, None] * _cotangent(outputs, labels) + to_all * (np.exp(log_probability) - 1 / outputs.shape[1]),
    )


def _label_logit(outputs: Array, labels: Labels) -> Array:
    if outputs.ndim == 1:
        return np.asarray((2 * labels - 1) * outputs)
    own = outputs[np.arange(len(labels)), labels]
    return np.asarray(own - special.logsumexp(_others(outputs, labels), axis=1))


def _cotangent(outputs: Array, labels: Labels) -> Array:
    if outputs.ndim == 1:
        return np.asarray(2.0 * labels - 1)
    cotangent = -special.softmax(_others(outputs, labels), axis=1)
    cotangent[np.arange(len(labels)), labels] = 1.0
    return np.asarray(cotangent)


def _others(outputs: Array, labels: Labels) -> Array:
    """The outputs with each label's own struck out of exponential sums."""
    others = outputs.copy()
    others[np.arange(len(labels)), labels] = -np.inf
    return others


# ---- what comes in --------------------------------------------------------------------------------------------------------------


def _residual(loss: SampleLoss, outputs: npt.ArrayLike, targets: npt.ArrayLike) -> Array:
    values, wanted = _one_axis_less(_outputs(outputs)), _one_axis_less(_numbers("target", targets))
    if values.shape != wanted.shape:
        raise ViewError(
            f"Outputs of shape {np.shape(outputs)} cannot meet targets of shape {np.shape(targets)}: {loss.name} needs one target for "
            f"each output."
        )
    return np.asarray(values - wanted)


def _labelled(loss: SampleLoss | None, outputs: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[Array, Labels]:
    """Outputs [n] or [n, k >= 2] and their labels [n], for any loss of labels if none is named."""
    values = _one_axis_less(_outputs(outputs))
    several = values.ndim == 2
    if loss is not None and loss.name == "binary_cross_entropy" and several:
        raise ViewError(f"binary_cross_entropy takes one output per sample, not {values.shape[1]}; choose cross_entropy.")
    if loss is not None and loss.name in ("cross_entropy", "label_smoothing") and not several:
        raise ViewError(f"{loss.name} needs at least two outputs per sample, not one; choose binary_cross_entropy.")
    wanted = _numbers("label", labels)
    if wanted.shape != values.shape[:1]:
        raise ViewError(f"{len(values)} samples need as many labels, in one row; they have the shape {wanted.shape}.")
    classes = values.shape[1] if several else 2
    wrong = np.flatnonzero((wanted != np.floor(wanted)) | (wanted < 0) | (wanted >= classes))
    if wrong.size:
        raise ViewError(
            f"Label {wrong[0]} is {wanted[wrong[0]]:g}; labels of {classes} classes are whole numbers from 0 to {classes - 1}."
        )
    return values, wanted.astype(np.int64)


def _outputs(outputs: npt.ArrayLike) -> Array:
    values = _numbers("output", outputs)
    if values.ndim not in (1, 2) or values.shape[1:] == (0,):
        raise ViewError(f"Outputs have the shape {values.shape}; give one row per sample, [n] or [n, k].")
    return values


def _numbers(what: str, given: Any) -> Array:
    """In float64, whatever their own dtype.

    Raises:
        ViewError: one of them is not a finite number.
    """
    values = np.asarray(given)
    if values.dtype.kind not in "biuf":
        raise ViewError(f"Each {what} must be a number; these are of type {values.dtype}.")
    values = values.astype(np.float64)
    wrong = np.argwhere(~np.isfinite(values))
    if len(wrong):
        place = ", ".join(str(index) for index in wrong[0])
        raise ViewError(f"The {what} at {place} is {values[tuple(wrong[0])]}; each must be a finite number. Leave that sample out.")
    return np.asarray(values)


def _one_axis_less(values: Array) -> Array:
    """An axis of one output is none."""
    return values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values
