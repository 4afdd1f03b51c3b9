"""The classifier under the attack libraries of others: they take it as it is, and agree with us."""

import pytest
import torch
import torchattacks
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader

import apd
from apd.attacks import ThreatModel, find_attack
from apd.evaluate import EvaluationRequest, evaluate

EPS, ALPHA, STEPS = 2 / 255, 0.5 / 255, 5


@pytest.fixture(scope="module")
def model():
    """Zero-shot CLIP of the digits, of which it knows most and keeps some under attack."""
    return apd.zero_shot("mini", [str(digit) for digit in range(10)], "a photo of the digit {}.")


@pytest.fixture(scope="module")
def labelled(model):
    """Images (24, 3, R, R) and labels."""
    digits = load_digits()
    pixels = (digits.images[:24] * 255 / 16).astype("uint8")
    images = torch.stack([model.preprocess(Image.fromarray(image)) for image in pixels])
    return images, torch.from_numpy(digits.target[:24])


@pytest.fixture(scope="module")
def ours(model, labelled):
    """Accuracy, in %, under our own PGD without a random start, whose last iterate counts."""
    threat = ThreatModel("linf", 255 * EPS, 255 * ALPHA, STEPS, random_start=False)
    attacked = evaluated(model, labelled, find_attack(threat.name, threat, last_iterate=True))
    assert 0 < attacked < accuracy(model, *labelled), "an attack has to matter here"
    return attacked


def evaluated(model, labelled, attack):
    """Accuracy, in %, by our own evaluation."""
    loader = DataLoader(list(zip(*labelled)), batch_size=8)
    _, record = evaluate(model, loader, EvaluationRequest((attack,)))
    return record["accuracy"]


def accuracy(model, images, labels):
    """In %, RobustBench's way: a model is called on images in [0, 1], and its argmax counts."""
    with torch.no_grad():
        return 100 * int((model(images).max(1)[1] == labels).sum()) / len(labels)


def check(images, attacked):
    assert 0 <= attacked.min() and attacked.max() <= 1
    assert (attacked - images).abs().max() <= EPS + 1e-6


def test_torchattacks(model, labelled, ours):
    attack = torchattacks.PGD(model, eps=EPS, alpha=ALPHA, steps=STEPS, random_start=False)
    attacked = attack(*labelled)
    check(labelled[0], attacked)
    assert accuracy(model, attacked, labelled[1]) == ours


def test_foolbox(model, labelled, ours):
    foolbox = pytest.importorskip("foolbox")
    attack = foolbox.attacks.LinfPGD(abs_stepsize=ALPHA, steps=STEPS, random_start=False)
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    _, attacked, fooled = attack(wrapped, *labelled, epsilons=EPS)
    check(labelled[0], attacked)
    assert 100 * (1 - float(fooled.float().mean())) == pytest.approx(ours, abs=1e-4)


def test_adversarial_robustness_toolbox(model, labelled, ours):
    pytest.importorskip("art", reason="adversarial-robustness-toolbox is not installed")
    from art.attacks.evasion import ProjectedGradientDescent
    from art.estimators.classification import PyTorchClassifier

    images, labels = labelled
    wrapped = PyTorchClassifier(
        model=model,
        loss=nn.CrossEntropyLoss(),
        input_shape=tuple(images.shape[1:]),
        nb_classes=len(model.class_names),
        clip_values=(0.0, 1.0),
        device_type="cpu",
    )
    attack = ProjectedGradientDescent(
        wrapped, eps=EPS, eps_step=ALPHA, max_iter=STEPS, num_random_init=0, verbose=False
    )
    attacked = torch.from_numpy(attack.generate(images.numpy(), labels.numpy()))
    check(images, attacked)
    assert accuracy(model, attacked, labels) == ours


def test_autoattack_by_its_authors(model, labelled, ours):
    package = pytest.importorskip("pyautoattack", reason="AutoAttack's package is not installed")
    images, labels = labelled
    attack = package.AutoAttack(
        model, attacks=["apgd-ce"], device="cpu", eps=EPS, norm="Linf", seed=0, version="custom"
    )
    attack.apgd.n_iter = 10
    attacked, _ = attack.run_standard_evaluation(images, labels, batch_size=8)
    check(images, attacked)
    threat = ThreatModel("linf", 255 * EPS, 255 * ALPHA, STEPS)
    same = evaluated(model, labelled, find_attack("apgd-ce-10", threat))
    assert accuracy(model, attacked, labels) == same <= ours
