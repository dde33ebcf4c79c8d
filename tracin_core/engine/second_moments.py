"""Adam's second moment, read from a checkpoint file beside its weights, or the reason why the file gives none.

What a file holds is hostile until it was checked: this runs in the limited child of `checkpoints.py`. `adam.py` makes a preconditioner of
what was kept.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, Final

import torch
from torch import Tensor

from tracin_core.engine.intake import comes_from, groups_of, number, optimizers_of, printable

FLOATS: Final = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
EPS: Final = "/eps"  # of a parameter, beside its second moment; no name of a parameter that is told by dots ends so


class Unfit(Exception):
    """Why a file's optimiser state gives no second moment of the model's parameters; in plain words."""


def is_of_adam(content: dict[Any, Any]) -> bool:
    """The file says something of an optimiser that keeps running means, be it sound or not."""
    optimizers = optimizers_of(content)
    states = [dict.get(optimizer, "state") for optimizer in optimizers]
    entries = [entry for state in states if isinstance(state, dict) for entry in dict.values(state) if isinstance(entry, dict)]
    return any("exp_avg" in entry for entry in entries) or any("betas" in group for group in groups_of(optimizers))


def second_moment(
    content: dict[Any, Any], parameters: Mapping[str, Sequence[int]], frozen: Sequence[str], records: frozenset[str] | None
) -> dict[str, Tensor]:
    """v / (1 - beta2^t) of every parameter by its name, float32, and eps under `<name>/eps`, float64.

    Args:
        parameters: shapes by name, in the model's order.
        frozen: names of those that are not trained, which an optimiser may leave out.
        records: see `load_checked`.

    Raises:
        Unfit: the state is not exactly that of Adam or AdamW over these parameters.
    """
    optimizers = optimizers_of(content)
    if len(optimizers) != 1:
        raise Unfit(f"it holds the states of {len(optimizers)} optimizers")
    state, groups = dict.get(optimizers[0], "state"), groups_of(optimizers)
    if not isinstance(state, dict) or not state:
        raise Unfit("its optimizer has taken no step")
    found: dict[str, Tensor] = {}
    for name, index, group in placed(groups, parameters, frozen):
        entry = dict.get(state, index)
        if entry is None and name in frozen:
            continue
        if not isinstance(entry, dict):
            raise Unfit(f"its optimizer never moved '{name}'")
        eps, corrected = settings_of(name, entry, group, records)
        key = "max_exp_avg_sq" if dict.get(group, "amsgrad") is True else "exp_avg_sq"
        moment = sound(f"the {key} of '{name}'", dict.get(entry, key), parameters[name], records)
        found[name] = (moment.to(torch.float64) / corrected).to(torch.float32).contiguous()
        found[name + EPS] = torch.tensor(eps, dtype=torch.float64)
        if not bool(torch.isfinite(found[name]).all()) or (eps == 0 and not bool((found[name] > 0).all())):
            raise Unfit(f"'{name}' would be divided by 0, or has a second moment beyond single precision")
    return found


def placed(
    groups: Sequence[dict[Any, Any]], parameters: Mapping[str, Sequence[int]], frozen: Sequence[str]
) -> Iterator[tuple[str, int, dict[Any, Any]]]:
    """Every parameter's name, its number in the optimiser's state, and its group's settings.

    torch numbers parameters in the order in which they were handed over, group after group, and keeps their names only where they came with
    them (`Adam(model.named_parameters())`). Without names they are the model's own in its order, all or the trained ones; where another
    order of the groups would have the same shapes, nobody can tell.

    Raises:
        Unfit: they are not the model's, or nobody can tell which is which.
    """
    numbers = [numbers_of(group) for group in groups]
    total = sum(len(own) for own in numbers)
    trained = [name for name in parameters if name not in frozen]
    if groups and all("param_names" in group for group in groups):
        names = [name for group in groups for name in names_of(group, parameters)]
        if len(names) != total or len(set(names)) != total or not set(trained) <= set(names):
            raise Unfit("the names of its optimizer's parameters are not the model's")
    else:
        fitting = [order for order in (list(parameters), trained) if len(order) == total]
        if not fitting:
            raise Unfit(f"its optimizer has {total} parameters and the model {len(parameters)}, {len(trained)} of them trained")
        names = fitting[0]
        refuse_exchangeable([len(own) for own in numbers], [tuple(parameters[name]) for name in names])
    each = [(index, group) for own, group in zip(numbers, groups, strict=True) for index in own]
    if len({index for index, _ in each}) != total:
        raise Unfit("its optimizer has a parameter in two groups")
    for name, (index, group) in zip(names, each, strict=True):
        yield name, index, group


def numbers_of(group: dict[Any, Any]) -> list[int]:
    numbers = dict.get(group, "params")
    if not isinstance(numbers, list) or any(type(index) is not int for index in numbers):
        raise Unfit("its optimizer does not number its parameters")
    return numbers


def names_of(group: dict[Any, Any], parameters: Mapping[str, Sequence[int]]) -> list[str]:
    """The model's names of the group's parameters, without what wrappers put before them."""
    names = dict.get(group, "param_names")
    if not isinstance(names, list) or len(names) != len(numbers_of(group)) or any(not isinstance(name, str) for name in names):
        raise Unfit("its optimizer does not name each of its parameters")
    bare = []
    for name in names:
        while name not in parameters and "." in name:
            name = name.split(".", 1)[1]
        if name not in parameters:
            raise Unfit(f"its optimizer has a parameter '{printable(name)[:40]}', which the model lacks")
        bare.append(name)
    return bare


def refuse_exchangeable(sizes: Sequence[int], shapes: Sequence[tuple[int, ...]]) -> None:
    """Raises Unfit where two groups could change places and every shape would still fit: their order is whoever trained's choice."""
    ends = torch.tensor(sizes).cumsum(0).tolist()
    parts = [list(shapes[end - size : end]) for size, end in zip(sizes, ends, strict=True) if size]
    for (one, first), (other, second) in combinations(enumerate(parts), 2):
        between = [shape for part in parts[one + 1 : other] for shape in part] if first[0] == second[0] else []
        if first[0] == second[0] and [*first, *between, *second] == [*second, *between, *first]:
            raise Unfit(
                f"groups {one + 1} and {other + 1} of its optimizer have the same shapes and no names, so nobody can tell which is "
                f"which (Adam of model.named_parameters() keeps names)"
            )


def settings_of(name: str, entry: dict[Any, Any], group: dict[Any, Any], records: frozenset[str] | None) -> tuple[float, float]:
    """eps, and 1 - beta2^t of this parameter.

    Raises:
        Unfit: they are not those of Adam or AdamW, or make no sense.
    """
    betas = dict.get(group, "betas")
    if not isinstance(betas, tuple | list) or len(betas) != 2 or "amsgrad" not in group:
        raise Unfit("its optimizer has not the settings of Adam or AdamW (betas, eps, amsgrad)")
    beta, eps, recorded = number(betas[1]), number(dict.get(group, "eps")), dict.get(entry, "step")
    if beta is None or eps is None or not 0 <= beta < 1 or eps < 0:
        raise Unfit("its optimizer's beta2 is not from 0 to below 1, or its eps is no number of at least 0")
    step = number(sound(f"the step of '{name}'", recorded, [], records) if isinstance(recorded, Tensor) else recorded)
    if step is None or step < 1 or step != int(step):
        raise Unfit(
            f"the step of '{name}' is {'no number' if step is None else f'{step:g}'}, where a whole number from 1 is needed"
        )
    return eps, 1 - beta**step


def sound(what: str, value: Any, shape: Sequence[int], records: frozenset[str] | None) -> Tensor:
    """The tensor, which is dense, of this shape, of the file's own bytes, finite and not negative.

    Raises:
        Unfit: it is not.
    """
    if not isinstance(value, Tensor):
        raise Unfit(f"{what} is no tensor")
    if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized or value.dtype not in FLOATS:
        raise Unfit(f"{what} is not dense, or holds no real numbers")
    if list(value.shape) != list(shape):
        raise Unfit(f"{what} has shape {list(value.shape)[:6]}, the model's has {list(shape)}")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise Unfit(f"{what} has fewer bytes than its shape says")
    if records is not None and not comes_from(value, records):
        raise Unfit(f"{what} has bytes that are not in the file")
    if not bool(torch.isfinite(value).all()):
        raise Unfit(f"{what} holds NaN or infinity")
    if bool((value < 0).any()):
        raise Unfit(f"{what} has negative entries")
    return value.detach()
