"""The classifier of the two MLP benchmarks, and the peers that work on it."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from captum.influence import TracInCP
from common import per_sample_gradients
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

BATCH = 100  # of the peers' gradients; larger ones are not faster here


def build() -> nn.Module:
    """784-512-512-10, the size of an MNIST classifier."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)).eval()


def draw(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """SIMULATED images and labels."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 784, generator=generator), torch.randint(0, 10, (count,), generator=generator)


def wrongness(outputs: Tensor, labels: Tensor) -> Tensor:
    """1 - p_y, by which cross-entropy scales the gradient of logit(p_y)."""
    return 1 - torch.softmax(outputs, 1).gather(1, labels[:, None]).squeeze(1)


def loss(outputs: Tensor, label: Tensor) -> Tensor:
    return F.cross_entropy(outputs, label)


def captum_of(model: nn.Module, train: tuple[Tensor, Tensor]) -> TracInCP:
    """Captum's fastest setting, exact here: its sample-wise trick knows Linear layers."""
    folder = Path(tempfile.mkdtemp())
    torch.save(model.state_dict(), folder / "checkpoint.pt")

    def load(loaded: nn.Module, path: str) -> float:
        loaded.load_state_dict(torch.load(path, weights_only=True))
        return 1.0

    return TracInCP(
        build(),
        DataLoader(TensorDataset(*train), batch_size=BATCH),
        [str(folder / "checkpoint.pt")],
        checkpoints_load_func=load,
        loss_fn=nn.CrossEntropyLoss(reduction="sum"),
        sample_wise_grads_per_batch=True,
    )


def by_captum(model: nn.Module, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> Callable[[], Tensor]:
    """`[train, test]` influences."""
    tracin, tests = captum_of(model, train), DataLoader(TensorDataset(*test), batch_size=BATCH)
    return lambda: tracin.influence(tests).T


def by_func(model: nn.Module, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> Callable[[], Tensor]:
    """The test gradients are kept, the training gradients streamed past them."""

    def gradients(samples: tuple[Tensor, Tensor]) -> list[Tensor]:
        batches = zip(samples[0].split(BATCH), samples[1].split(BATCH), strict=True)
        return [per_sample_gradients(model, loss, inputs, labels) for inputs, labels in batches]

    def influence() -> Tensor:
        kept = torch.cat(gradients(test))
        batches = zip(train[0].split(BATCH), train[1].split(BATCH), strict=True)
        return torch.cat([per_sample_gradients(model, loss, *batch) @ kept.T for batch in batches])

    return influence


def by_dattri(model: nn.Module, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> Callable[[], Tensor]:
    """dattri without projection; it differentiates the test samples again for every training batch."""
    from dattri.algorithm.tracin import TracInAttributor
    from dattri.task import AttributionTask

    def of_one(weights: dict[str, Tensor], sample: tuple[Tensor, Tensor]) -> Tensor:
        outputs = torch.func.functional_call(model, weights, (sample[0][None],))
        return F.cross_entropy(outputs, sample[1][None])

    task = AttributionTask(loss_func=of_one, model=model, checkpoints=[model.state_dict()])
    attributor = TracInAttributor(task, weight_list=torch.ones(1), normalized_grad=False)
    attributor.projector_kwargs = None  # unprojected
    trains = DataLoader(TensorDataset(*train), batch_size=BATCH)
    tests = DataLoader(TensorDataset(*test), batch_size=BATCH)
    return lambda: attributor.attribute(trains, tests)
