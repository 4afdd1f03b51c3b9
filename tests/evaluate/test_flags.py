"""Each flag, raised by a model that was built to raise it, and not raised by a sound one."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from apd.attacks import ThreatModel, find_attack
from apd.evaluate import EvaluationRequest, Source, evaluate
from apd.evaluate.flags import add_flags
from apd.evaluate.request import WHITE_BOX

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


def softmaxed(images):
    return NET(images).softmax(dim=1)


def deaf(images):
    """Does not look at the image's gradient, nor much at the image."""
    brightness = images.mean(dim=(1, 2, 3))
    return torch.stack([brightness * 0 + 1] + [brightness * 1e-3] * (CLASSES - 1), dim=1)


def snapped(images):
    """Restores the levels of the clean images, but only if the attack goes far from them."""
    levels = (images * 8).round() / 8
    near = (images - levels).abs().amax(dim=(1, 2, 3), keepdim=True) < 6 / 255
    return NET(torch.where(near, images, levels))


def two_of_four(wrong):
    """Logits that are right, class 0, until ``wrong`` (B,) is positive."""
    return torch.stack([0 * wrong, wrong, 0 * wrong - 9, 0 * wrong - 9], dim=1)


def wavy(images):
    """A step of 4/255 fools it, the next one undoes that."""
    return two_of_four(torch.cos(2 * torch.pi * (255 * images.mean(dim=(1, 2, 3)) + 3) / 8))


def hilly(images):
    """A small hill holds small steps back; the large one is 7/255 away."""
    away = 255 * images.mean(dim=(1, 2, 3))
    away = away - 32 * (away.detach() / 32).round()
    return two_of_four(torch.where(away.abs() > 7, 1, -0.1 - 0.1 * (away - 1).abs()))


def data(model, n=24, wrong=8, kind="noise"):
    """Images in [0, 1], and the model's own labels, but for each ``wrong``-th."""
    images = torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    images[:6] = images[:6].clamp(max=0.98)
    images[:6, 0, 0, 0] = 1.0
    if kind == "levels":
        images = (images * 8).round() / 8
    if kind == "flat":
        levels = 32 / 255 * torch.arange(1, 8)
        images = levels[torch.arange(n) % 7].view(n, 1, 1, 1).expand(n, 3, 8, 8)
    with torch.no_grad(), torch.random.fork_rng():
        labels = model(images).argmax(1)
    labels[::wrong] = (labels[::wrong] + 1) % CLASSES
    return DataLoader(TensorDataset(images, labels), 8)


def evaluated(model, loader, threat=THREAT, **more):
    return evaluate(model, loader, EvaluationRequest.within(threat, **more))


def flags(model, *attacks, loader=None, sources=(WHITE_BOX,), **more):
    """Of each attack and source, from real evaluations; compared as apd-eval does."""
    loader, records = loader or data(model), []
    for source in sources:
        found = evaluated(model, loader, attacks=attacks, source=source, **more)
        records += found[1:] if records else found
    add_flags(records)
    return [set(record["flags"]) for record in records[1:]]


AT_4 = find_attack("pgd-10", ThreatModel("linf", eps=4, alpha=1, steps=10))
AT_128 = find_attack("pgd-20", ThreatModel("linf", eps=128, alpha=16, steps=20))
ONE, TWO = (
    find_attack(f"pgd-{k}", ThreatModel("linf", 8, 4, k, random_start=False), last_iterate=True)
    for k in (1, 2)
)
TWIN = Source("transfer:twin", (NET,), "twin")  # of the quantised model: the same without the mask

RAISED = [  # flag, model, evaluations (the flagged one first), data
    ("zero-gradients", quantised, ("pgd-10",), {}),
    ("zero-gradients", quantised, ("apgd-ce-10",), {}),
    ("zero-gradients", saturated, ("pgd-10",), {}),
    ("zero-gradients", saturated, ("apgd-ce-10",), {}),
    ("broken-gradients", broken, ("pgd-10",), {}),
    ("random-logits", random_forward, ("pgd-10",), {}),
    ("probabilities", softmaxed, ("pgd-10",), {}),
    ("unbounded", deaf, ("pgd-10",), {}),
    ("black-box-beats-white-box", quantised, ("pgd-10", "square-200"), {}),
    ("not-zero-at-large-eps", deaf, (AT_128,), {}),
    ("square", quantised, ("autoattack-4",), {}),
    ("transfer", quantised, ("pgd-10", TWIN), {}),
    ("eps", snapped, ("pgd-10", AT_4), {"kind": "levels"}),
    ("steps", wavy, (TWO, ONE), {"kind": "flat"}),
    ("steps", hilly, ("pgd-10", "fgsm"), {"kind": "flat"}),
    ("robust-above-clean", wavy, (ONE,), {"kind": "flat", "wrong": 1}),
]


@pytest.mark.parametrize(
    ("flag", "model", "evaluations", "recipe"),
    RAISED,
    ids=[f"{flag}-{model.__name__}-{evaluations[0]}" for flag, model, evaluations, _ in RAISED],
)
def test_a_flag_is_raised_by_a_model_built_to_raise_it_and_not_by_a_sound_one(
    flag, model, evaluations, recipe
):
    attacks = [one for one in evaluations if not isinstance(one, Source)]
    sources = (WHITE_BOX, *(one for one in evaluations if isinstance(one, Source)))

    def found(model):
        torch.manual_seed(0)  # of the random forward
        return flags(model, *attacks, loader=data(model, **recipe), sources=sources)

    flagged, *others = found(model)
    assert flag in flagged and not any(flag in other for other in others)
    assert found(NET) == [set()] * len(evaluations)


def test_every_flag_of_the_documentation_was_seen():
    text = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    table = text.split("## Flags")[1].split("\n## ")[0]
    names = {
        name
        for line in table.splitlines()
        if line.startswith("| `")
        for name in re.findall(r"`([a-z-]+)`", line.split("|")[1])
    }
    assert names == {case[0] for case in RAISED} | {
        *("tiny-eps", "unmoved", "chance", "below-zero-shot"),
        "static-overstates",  # tests/evaluate/test_defended_evaluation.py
    }


@pytest.mark.parametrize(
    "eps, attack, flagged",
    [
        (0.0157, "pgd-10", {"tiny-eps"}),
        (0.0157, "apgd-ce-2", {"tiny-eps"}),
        (0.99, "pgd-10", {"tiny-eps"}),
        (1, "pgd-10", set()),
        (8, "pgd-0", {"unmoved"}),
        (0, "pgd-10", {"unmoved"}),
        (0, "apgd-ce-2", {"unmoved"}),
    ],
)
def test_an_attack_that_attacks_nothing_is_flagged(eps, attack, flagged):
    threat = ThreatModel("linf", eps=eps, alpha=eps / 4, steps=10)
    assert flags(NET, attack, threat=threat) == [flagged]


def test_how_many_images_moved_is_told():
    _, record = evaluated(NET, data(NET))
    assert record["checks"]["moved"] == 100


@pytest.mark.parametrize("wrong, flagged", [(1, True), (8, False)])
def test_guessing_is_told_from_knowing(wrong, flagged):
    """All labels changed, or every eighth: none of the images right, or seven in eight."""
    (clean,) = evaluated(NET, data(NET, wrong=wrong), None)
    assert ("chance" in clean["flags"]) == flagged


def test_the_commonest_class_for_every_image_is_guessing():
    loader = data(NET)
    commonest = loader.dataset.tensors[1].mode().values

    def constant(images):
        return torch.eye(CLASSES)[commonest].expand(len(images), -1)

    (clean,) = evaluated(constant, loader, None)
    share = (loader.dataset.tensors[1] == commonest).float().mean()
    assert clean["accuracy"] == clean["checks"]["commonest"] == pytest.approx(100 * share.item())
    assert "not above" in clean["flags"]["chance"]


@pytest.mark.parametrize("zero_shot, flagged", [(90.0, True), (60.0, False), (None, False)])
def test_less_than_half_of_zero_shot_has_fallen_apart(zero_shot, flagged):
    clean = record("clean", 40.0) | {"correct": 80, "checks": {"zero_shot": zero_shot}}
    add_flags([clean])
    assert ("below-zero-shot" in clean["flags"]) == flagged


def test_a_sound_model_raises_none():
    attacks = ["fgsm", "pgd-10", "pgd-20", "cw-20", "apgd-ce-10", "square-100", AT_4]
    assert flags(NET, *attacks) == [set()] * 7


def test_the_share_of_images_is_told():
    def half(images):  # no gradient for dark images
        seen = images.mean(dim=(1, 2, 3), keepdim=True) > 0.5
        return NET(torch.where(seen, images, images.detach()))

    _, record = evaluated(half, data(half))
    images, labels = data(half).dataset.tensors
    right = half(images).argmax(1) == labels
    dark = (images.mean(dim=(1, 2, 3)) < 0.5) & right
    assert 0 < dark.sum() < right.sum()
    share = 100 * dark.sum().item() / right.sum().item()
    # an attack may move a grey image over the border
    assert record["checks"]["zero_gradients"] == pytest.approx(share, abs=10)


def test_broken_gradients_come_with_their_share():
    _, record = evaluated(broken, data(broken))
    assert 0 < record["checks"]["broken_gradients"] < 100


def record(attack="pgd-10", accuracy=50.0, images="all", **threat):
    fields = {"eps": 8, "norm": "linf", "steps": 10, "source": "white-box", "seed": 1, **threat}
    return {
        "attack": attack,
        "accuracy": accuracy,
        "total": 200,
        "split": "test",
        "images": images,
        "threat_model": None if attack == "clean" else fields,
    }


@pytest.mark.parametrize(
    ("name", "other", "flagged"),
    [
        ("robust-above-clean", record("clean", 49.0), record()),
        ("steps", record("pgd-5", 49.0, steps=5), record()),
        ("steps", record("fgsm", 49.0, steps=1, loss="ce"), record()),
        ("eps", record(eps=4), record()),
        ("eps", record(eps=4, alpha=1, accuracy=49.0), record(alpha=2)),
        ("black-box-beats-white-box", record("square", 49.0, steps=5000), record()),
        (
            "black-box-beats-white-box",
            record(accuracy=49.0, source="static"),
            record(source="adaptive"),
        ),
        ("transfer", record(accuracy=49.0, source="transfer:zeroshot"), record()),
    ],
)
def test_comparisons_fire_on_the_suspect_only(name, other, flagged):
    add_flags([other, flagged])
    assert list(flagged["flags"]) == [name] and other["flags"] == {}
    # other images, or the accuracies the right way round: nothing to compare, nothing to flag
    add_flags([other, apart := {**flagged, "images": {"count": 200, "seed": 0}}])
    assert other["flags"] == apart["flags"] == {}
    add_flags([other, apart := {**flagged, "split": "val"}])
    assert other["flags"] == apart["flags"] == {}
    add_flags([{**other, "accuracy": 60.0}, sound := dict(flagged)])
    assert sound["flags"] == {}


@pytest.mark.parametrize(
    ("total", "felled", "flagged"),
    [
        (1000, 5, False),
        (1000, 6, True),
        (200, 1, False),
        (200, 2, True),
        (50, 1, False),
        (50, 2, True),
    ],
)
def test_square_may_fell_half_a_percent_or_one_image_alone(total, felled, flagged):
    one = {**record("autoattack"), "total": total, "fell_to": {"apgd-ce": 3, "square": felled}}
    add_flags([one])
    assert ("square" in one["flags"]) == flagged


def test_little_is_chance():
    add_flags([record("square", 49.6, steps=5000), other := record()])
    assert other["flags"] == {}
    add_flags([record(eps=4, accuracy=0.0), other := record(accuracy=0.0)])
    assert other["flags"] == {}
