"""Each flag, raised by a model that was built to raise it, and not raised by a sound one."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from apd.attacks import ThreatModel, find_attack
from apd.evaluate import Source, evaluate
from apd.evaluate.flags import add_flags

CLASSES = 4


class Net(nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.layers = nn.Sequential(
                nn.Flatten(), nn.Linear(192, 32), nn.Tanh(), nn.Linear(32, CLASSES)
            )

    def forward(self, images):
        return 8 * self.layers(images - 0.5)


NET = Net()
THREAT = ThreatModel("linf", eps=8, alpha=2, steps=10)


def quantised(images):
    """Sees 16 levels, so its gradient is zero everywhere; a black box gets through."""
    return NET((images * 16).floor() / 16)


def saturated(images):
    """Margins so large that the softmax is 0 and 1 in float32."""
    return 1e4 * NET(images)


def broken(images):
    """The square root has no slope at 0: white pixels."""
    return NET(images) + 1e-3 * (1 - images).amin(dim=(1, 2, 3)).sqrt()[:, None]


def random_forward(images):
    return NET(images + 0.1 * torch.randn_like(images))


def deaf(images):
    """Does not look at the image's gradient, nor much at the image."""
    brightness = images.mean(dim=(1, 2, 3))
    return torch.stack([brightness * 0 + 1] + [brightness * 1e-3] * (CLASSES - 1), dim=1)


def data(model, n=24):
    images = torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    images[:6] = images[:6].clamp(max=0.98)
    images[:6, 0, 0, 0] = 1.0
    with torch.no_grad(), torch.random.fork_rng():
        labels = model(images).argmax(1)
    labels[::8] = (labels[::8] + 1) % CLASSES
    return DataLoader(TensorDataset(images, labels), 8)


def flags(model, *attacks, threat=THREAT, **more):
    _, *records = evaluate(
        model, data(model), threat, attacks or ("pgd-10",), parse_batch=tuple, **more
    )
    return [set(record["flags"]) for record in records]


def test_a_sound_model_raises_none():
    attacks = [
        *("fgsm", "pgd-10", "pgd-20", "cw-20", "apgd-ce-10", "square-100"),
        find_attack("pgd-10", ThreatModel("linf", 4, 1, 10)),
    ]
    assert flags(NET, *attacks) == [set()] * 7


@pytest.mark.parametrize("attack", ["pgd-10", "apgd-ce-10"])
@pytest.mark.parametrize("model", [quantised, saturated])
def test_zero_gradients(model, attack):
    assert "zero-gradients" in flags(model, attack)[0]


def test_the_share_of_images_is_told():
    def half(images):  # no gradient for dark images
        seen = images.mean(dim=(1, 2, 3), keepdim=True) > 0.5
        return NET(torch.where(seen, images, images.detach()))

    _, record = evaluate(half, data(half), THREAT, parse_batch=tuple)
    images, labels = data(half).dataset.tensors
    right = half(images).argmax(1) == labels
    dark = (images.mean(dim=(1, 2, 3)) < 0.5) & right
    assert 0 < dark.sum() < right.sum()
    share = 100 * dark.sum().item() / right.sum().item()
    # an attack may move a grey image over the border
    assert record["checks"]["zero_gradients"] == pytest.approx(share, abs=10)


def test_square_beats_the_gradient_where_it_is_masked():
    pgd, square = flags(quantised, "pgd-10", "square-200")
    assert "square" in pgd and "square" not in square


def test_square_within_autoattack():
    (found,) = flags(quantised, "autoattack-4")
    assert "square" in found


def test_broken_gradients():
    found = flags(broken, "pgd-10")[0]
    assert "broken-gradients" in found
    _, record = evaluate(broken, data(broken), THREAT, parse_batch=tuple)
    assert 0 < record["checks"]["broken_gradients"] < 100


def test_random_logits():
    torch.manual_seed(0)
    assert "random-logits" in flags(random_forward)[0]


def test_an_unbounded_attack_must_reach_zero():
    assert "unbounded" in flags(deaf)[0]


def test_transfer_beats_white_box_where_the_gradient_is_masked():
    """The same model without the mask gives the attack."""
    names = ["pgd-10"]
    loader = data(quantised)
    _, white = evaluate(quantised, loader, THREAT, names, parse_batch=tuple)
    source = Source("transfer:twin", (NET,), "twin")
    _, transferred = evaluate(quantised, loader, THREAT, names, parse_batch=tuple, source=source)
    assert transferred["accuracy"] < white["accuracy"]
    add_flags(records := [white, transferred])
    assert "transfer" in records[0]["flags"] and "transfer" not in records[1]["flags"]


def record(attack="pgd-10", accuracy=50.0, images="all", **threat):
    fields = {"eps": 8, "norm": "linf", "steps": 10, "source": "white-box", "seed": 1, **threat}
    return {
        "attack": attack, "accuracy": accuracy, "total": 200, "images": images,
        "threat_model": None if attack == "clean" else fields,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "other", "flagged"),
    [
        ("robust-above-clean", record("clean", 49.0), record()),
        ("steps", record("pgd-5", 49.0, steps=5), record()),
        ("steps", record("fgsm", 49.0, steps=1, loss="ce"), record()),
        ("eps", record(eps=4), record()),
        ("eps", record(eps=4, alpha=1, accuracy=49.0), record(alpha=2)),
        ("square", record("square", 49.0, steps=5000), record()),
        ("transfer", record(accuracy=49.0, source="transfer:zeroshot"), record()),
    ],
)
def test_comparisons_fire_on_the_suspect_only(name, other, flagged):
    add_flags([other, flagged])
    assert list(flagged["flags"]) == [name] and other["flags"] == {}
    # other images, or the accuracies the right way round: nothing to compare, nothing to flag
    add_flags([other, apart := {**flagged, "images": {"count": 200, "seed": 0}}])
    assert other["flags"] == apart["flags"] == {}
    add_flags([{**other, "accuracy": 60.0}, sound := dict(flagged)])
    assert sound["flags"] == {}


def test_little_is_chance():
    add_flags([record("square", 49.6, steps=5000), other := record()])
    assert other["flags"] == {}
    add_flags([record(eps=4, accuracy=0.0), other := record(accuracy=0.0)])
    assert other["flags"] == {}
