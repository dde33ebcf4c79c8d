"""Memory: what a plan promises, and that running out of it costs time and nothing else."""

import math

import pytest
import torch
from engine_cases import CASES, MODELS, Case, Head, autograd_rows, image, joined, model_of, samples_of
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tracin_core.engine import memory
from tracin_core.engine.gradients import Gradients, Part
from tracin_core.engine.kernel import coverage, memory_estimate, tangent_kernel, tangent_kernel_by_layer, tangent_norms
from tracin_core.engine.memory import SmallerTileWarning, is_out_of_memory, plan_tiling, smaller_tile
from tracin_core.errors import MachineError

CONV_NET = MODELS["conv net"]

counts = st.integers(1, 500)


@given(rows=counts, columns=st.none() | counts, batch=st.integers(1, 40), size=st.integers(1, 10**8), budget=st.integers(0, 10**11))
def test_a_plan_keeps_its_budget(rows: int, columns: int | None, batch: int, size: int, budget: int) -> None:
    """No more than the budget is held, unless that is the least there is; no plan differentiates more than it must."""
    plan = plan_tiling(rows, columns, batch_size=batch, sample_bytes=size, budget=budget)
    unit_bytes = plan.unit * batch * size
    assert plan.unit == 1 or unit_bytes <= memory.UNIT_BYTES
    assert plan.held_bytes <= budget or plan.tile == 1
    assert plan.unit == plan_tiling(rows, columns, batch_size=batch, sample_bytes=size, budget=0).unit
    roomy = plan_tiling(
        rows, columns, batch_size=batch, sample_bytes=size, budget=2 * (rows + (columns or 0) + batch) * size + 3 * unit_bytes
    )
    assert roomy.differentiated == rows + (columns or 0)
    assert plan.differentiated >= roomy.differentiated


def test_of_two_sides_that_fit_the_shorter_is_kept() -> None:
    """Both are differentiated once; what is kept is what takes room."""
    for rows, columns in ((512, 256), (256, 512)):
        plan = plan_tiling(rows, columns, batch_size=32, sample_bytes=1_000, budget=2**30)
        assert plan.keep_rows == (rows < columns)
        assert plan.differentiated == rows + columns


def test_a_plan_streams_the_longer_side() -> None:
    """20,000 x 2,000 samples of 1.7 MB each in 2 GiB: the 2,000 are kept, in two tiles."""
    plan = plan_tiling(20_000, 2_000, batch_size=32, sample_bytes=1_700_000, budget=2 * 2**30)
    assert not plan.keep_rows
    assert plan.differentiated == 2_000 + math.ceil(2_000 / (plan.tile * plan.unit * 32)) * 20_000
    assert plan.held_bytes <= 2 * 2**30


class Exhausting(nn.Module):
    """Allocations fail at chosen calls of the model."""

    def __init__(self, failures: dict[int, BaseException]) -> None:
        super().__init__()
        self.body = CONV_NET.build()
        self.failures, self.calls = failures, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls in self.failures:
            raise self.failures[self.calls]
        return self.body(x)


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
    ),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
    RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
    MemoryError(),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("right", [None, 7])
def test_running_out_of_memory_changes_no_bit(error: BaseException, right: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the tile is kept from then on, the compute batches stay, and a warning says so; also twice."""
    monkeypatch.setattr(memory, "UNIT_BYTES", 0)
    left, other = samples_of(CONV_NET, 18).float(), None if right is None else samples_of(CONV_NET, right, seed=3).float()
    expected = tangent_kernel_by_layer(model_of(Case(lambda: Exhausting({}), image(2, 6, 6))).float(), left, other, batch_size=2)
    for failures in ({6: error}, {5: error, 9: error}):
        model = model_of(Case(lambda chosen=failures: Exhausting(chosen), image(2, 6, 6))).float()
        with pytest.warns(SmallerTileWarning, match="units of gradients are kept from here on") as told:
            kernel = tangent_kernel_by_layer(model, left, other, batch_size=2)
        assert len(told) == len(failures)
        assert torch.equal(kernel, expected)


def test_a_real_allocation_that_fails_is_survived(monkeypatch: pytest.MonkeyPatch) -> None:
    """The allocator itself refuses: an exabyte is asked for once."""
    monkeypatch.setattr(memory, "UNIT_BYTES", 0)
    asked: list[int] = []

    def greedy(*_: object) -> None:
        asked.append(1)
        if len(asked) == 5:
            torch.empty(1 << 58)

    model, samples = model_of(CONV_NET), samples_of(CONV_NET, 12)
    expected = tangent_kernel(model, samples, batch_size=2)
    model.register_forward_hook(greedy)
    with pytest.warns(SmallerTileWarning, match="allocate"):
        kernel = tangent_kernel(model, samples, batch_size=2)
    assert torch.equal(kernel, expected)


@pytest.mark.parametrize("call", [tangent_kernel, tangent_norms])
def test_memory_for_a_single_unit_is_needed(call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "UNIT_BYTES", 0)
    error = torch.OutOfMemoryError("CUDA out of memory.")
    model = model_of(Case(lambda: Exhausting(dict.fromkeys(range(1, 99), error)), image(2, 6, 6)))
    with pytest.raises(MachineError, match=r"smaller batch_size than 2"):
        call(model, samples_of(CONV_NET, 6), batch_size=2)


def test_running_out_of_memory_is_no_reason_to_distrust_torch_func() -> None:
    """Else the gradients would be taken another way from there on, with other last bits."""

    class Bare(Exhausting):
        def __init__(self) -> None:
            super().__init__({5: RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes.")})
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            return torch.sin(super().forward(x) * self.scale)

    case = Case(Bare, image(2, 6, 6))
    model, samples = model_of(case), samples_of(case, 4)
    with pytest.raises(RuntimeError, match="not enough memory"):
        coverage(model, samples)  # the fifth pass is the one under torch.func
    assert dict(coverage(model, samples))["scale"] == "torch.func"


def test_each_time_half_as_much_is_kept() -> None:
    with pytest.warns(SmallerTileWarning, match="no room.: 3 units of gradients are kept from here on instead of 7"):
        assert smaller_tile(7, "no room", torch.device("cpu")) == 3
    with pytest.raises(MemoryError, match="no room"):
        smaller_tile(1, "no room", torch.device("cpu"))


def test_other_errors_are_not_mistaken_for_it() -> None:
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied (4x3 and 2x1)"))
    assert not is_out_of_memory(KeyError("not enough memory"))


@pytest.mark.parametrize("name", ["conv net", "positions", "linear at positions", "lstm"])
def test_the_estimate_is_what_is_held(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradients that a run keeps are as many bytes as was said before."""
    held: list[int] = []
    hold = Gradients.hold

    def weighed(*arguments):
        kept = hold(*arguments)
        held.append(sum(tensor.nbytes for value in kept.values() for tensor in tensors_of(value)))
        return kept

    def tensors_of(value: Tensor | list[Part]) -> list[Tensor]:
        return [value] if isinstance(value, Tensor) else [tensor for part in value for tensor in part.factor.tensors()]

    monkeypatch.setattr(Gradients, "hold", weighed)
    case = CASES[name]
    model, left, right = model_of(case), samples_of(case, 12), samples_of(case, 8, seed=3)
    estimate = memory_estimate(model, left, right, batch_size=4)
    assert not held
    tangent_kernel(model, left, right, batch_size=4)
    assert estimate.gradients == sum(held)
    assert estimate.kernel == 12 * 8 * 8
    assert estimate.differentiated == 20
    assert estimate.batch > 0
    assert estimate.total == estimate.kernel + estimate.gradients + estimate.batch
    assert memory_estimate(model, left, right, batch_size=8).batch == pytest.approx(
        2 * estimate.batch, rel=0.1
    )  # tables that all samples share do not grow


def test_a_branch_that_some_batches_do_not_take_counts_as_zero() -> None:
    """A unit's gradients share memory with the unit before it; what no sample of a batch reaches must not show through."""

    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = nn.Linear(3, 9), nn.Conv1d(1, 2, 2), nn.Linear(3, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.head(x).tanh()
            if bool((x[:, 0] > 0).any()):
                y = y + torch.where(x[:, :1] > 0, self.first(x).sin().sum(1, keepdim=True), 0.0)
                y = y + torch.where(x[:, :1] > 0, self.second(x[:, None]).sin().sum((1, 2))[:, None], 0.0)
            return y

    model, samples = model_of(Case(Branching, image(3))), image(3)(24)
    samples[:, 0] = torch.where((torch.arange(24) // 3) % 3 == 1, 1.0, -1.0).double()
    rows = joined(autograd_rows(model, samples, 24))
    for unit_bytes in (0, 1500, 2**20):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(memory, "UNIT_BYTES", unit_bytes)
            kernel = tangent_kernel(model, samples, samples[:9], batch_size=3)
            torch.testing.assert_close(kernel, rows @ rows[:9].T, rtol=1e-9, atol=1e-12)


def test_norms_of_heads_need_no_more_than_a_batch() -> None:
    """Norms keep one batch's gradients, whatever the number of samples."""
    model = model_of(Case(lambda: Head(nn.Linear(4, 3)), image(4)))
    samples = image(4)(9)
    rows = joined(autograd_rows(model, samples, 9))
    torch.testing.assert_close(tangent_norms(model, samples, batch_size=2, memory_budget=0), (rows**2).sum(1))
