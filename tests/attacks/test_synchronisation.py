"""What would wait for a GPU, counted on the CPU: looks at a tensor's values."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from apd.attacks import ThreatModel, find_attack, pgd, seeded_start
from apd.attacks.stream import Supply


class Looks(TorchDispatchMode):
    """Counts what a GPU would be waited for: values asked for, in whatever way."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        masks = name in ("index", "index_put_") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if masks or name in ("_local_scalar_dense", "nonzero", "masked_select"):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.Tanh(), nn.Linear(8, 4))


def batch(model):
    images = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return images, model(images).argmax(1)


def test_training_attacks_never_wait(model):
    images, labels = batch(model)
    with Looks() as looks:
        pgd(model, images, labels, ThreatModel("linf", 2, 1, steps=4))
        pgd(model, images, labels, ThreatModel("l2", 20, 9, steps=4))
    assert looks.names == []


@pytest.mark.parametrize("eps", [0.1, 8.0])
def test_an_evaluation_waits_once_a_step(model, monkeypatch, eps):
    """Where nothing falls, and where images fall at every step."""
    import importlib

    module = importlib.import_module("apd.attacks.pgd")
    images, labels = batch(model)
    brought, correct = [], module._correct_on_cpu
    monkeypatch.setattr(
        module, "_correct_on_cpu", lambda *a: brought.append(len(a[1])) or correct(*a)
    )
    forward = []
    threat = ThreatModel("linf", eps, eps / 4, steps=5)
    (stage,) = find_attack("pgd-5", threat).stages
    rows = {"index": torch.arange(6), "image": images, "label": labels}
    decided = stage.run(
        Supply([rows]),
        lambda x: forward.append(len(x)) or model(x),
        batch_size=6,
        start=seeded_start(threat, 0),
    )
    assert sum(len(done["index"]) for done, _ in decided) == 6
    assert brought == forward  # one for each iterate of the pool
