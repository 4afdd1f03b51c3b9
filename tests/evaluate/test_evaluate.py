import json
import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from apd.attacks import ThreatModel, seeded_start
from apd.errors import NonFiniteLoss, UserError
from apd.evaluate import EvaluationRequest, evaluate, loop

CLASSES = 4
THREAT = ThreatModel("linf", eps=6, alpha=2, steps=5)


@pytest.fixture
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(48, 32), nn.Tanh(), nn.Linear(32, CLASSES))


def data(model, n=30, wrong=5, batch_size=8):
    images = torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        labels = model(images).argmax(1)
    labels[::wrong] = (labels[::wrong] + 1) % CLASSES
    return DataLoader(TensorDataset(images, labels), batch_size)


def run(model, loader, threat=None, *, desc="evaluation", on_clean=None, **asked):
    request = EvaluationRequest.within(threat, **asked)
    return evaluate(model, loader, request, desc=desc, on_clean=on_clean)


def test_records_state_what_was_done(model):
    clean, robust = run(model, data(model), THREAT, seed=3)
    assert (clean["attack"], clean["threat_model"]) == ("clean", None)
    assert (clean["correct"], clean["total"], clean["accuracy"]) == (24, 30, 80.0)
    assert robust["attack"] == "pgd-5"
    assert robust["threat_model"] == {
        "norm": "linf",
        "eps": 6,
        "alpha": 2,
        "steps": 5,
        "restarts": 1,
        "random_start": True,
        "loss": "ce",
        "units": "1/255",
        "source": "white-box",
        "precision": "fp32",
        "seed": 3,
        "last_iterate": False,
    }
    assert clean["images"] == robust["images"] == "all"
    assert 0 < robust["correct"] < clean["correct"]
    assert robust["accuracy"] == pytest.approx(100 * robust["correct"] / 30)
    assert clean["seconds"] > 0 and robust["seconds"] > clean["seconds"]
    assert json.loads(json.dumps([clean, robust])) == [clean, robust]


def robust_by_hand(model, images, labels, threat, last_iterate, seed):
    """An image at a time, every iterate."""
    start, count = seeded_start(threat, seed), 0
    for i, (image, label) in enumerate(zip(images.split(1), labels.split(1))):
        iterates = [image, start(image, torch.tensor([i]), 0)]
        for _ in range(threat.steps):
            x = iterates[-1].clone().requires_grad_()
            (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), label), x)
            delta = iterates[-1] + threat.alpha / 255 * gradient.sign() - image
            eps = threat.eps / 255
            iterates.append((image + delta.clamp(-eps, eps)).clamp(0, 1))
        right = [(model(x).argmax(1) == label).item() for x in iterates]
        count += right[-1] if last_iterate else all(right)
    return count


def test_robust_count_is_that_of_a_plain_loop():
    def model(images):  # so wavy that the attack loses its way
        wave = torch.sin(100 * images.mean(dim=(1, 2, 3)))
        return torch.stack([wave, -wave, wave - 2, wave - 2], dim=1)

    loader, counts, threat = data(model), [], ThreatModel("linf", eps=10, alpha=8, steps=3)
    for last_iterate in (False, True):
        _, robust = run(model, loader, threat, seed=3, last_iterate=last_iterate)
        expected = robust_by_hand(model, *loader.dataset.tensors, threat, last_iterate, seed=3)
        assert robust["correct"] == expected
        assert robust["threat_model"]["last_iterate"] is last_iterate
        counts.append(robust["correct"])
    assert counts[0] < counts[1]


def test_without_a_threat_there_is_no_attack(model):
    (clean,) = run(model, data(model))
    assert clean["correct"] == 24


def test_one_clean_forward_and_no_attack_on_images_that_are_wrong(model):
    sizes = []

    def logits(images):
        sizes.append((len(images), torch.is_grad_enabled()))
        return model(images)

    run(logits, data(model, n=10, wrong=1, batch_size=10), THREAT, checks=False)
    assert sizes == [(10, False)]


def test_the_seed_fixes_the_attack_whatever_the_global_state(model):
    def verdicts(seed):
        verdicts = []
        for eps in range(1, 12):
            torch.rand(1)
            threat = ThreatModel("linf", eps, eps / 2, steps=1)
            verdicts.append(run(model, data(model), threat, seed=seed)[1]["correct"])
        return verdicts

    assert verdicts(1) == verdicts(1)
    assert verdicts(1) != verdicts(2)


def test_the_host_evaluator_gets_the_clean_logits(model):
    loader, seen = data(model), []
    run(model, loader, THREAT, on_clean=lambda logits, labels: seen.append((logits, labels)))
    images, labels = loader.dataset.tensors
    torch.testing.assert_close(torch.cat([s[0] for s in seen]), model(images).detach())
    assert torch.equal(torch.cat([s[1] for s in seen]), labels)
    assert not seen[0][0].requires_grad


def test_runs_in_float32_under_autocast(model):
    dtypes = set()

    def logits(images):
        out = model(images)
        dtypes.add(out.dtype)
        return out

    with torch.autocast("cpu", dtype=torch.bfloat16):
        run(logits, data(model), THREAT)
    assert dtypes == {torch.float32}


@pytest.mark.parametrize("shift", [-0.1, 0.1, float("nan")])
def test_normalised_images_are_refused(model, shift):
    images, labels = data(model).dataset.tensors
    images[0] = images[0].round()  # touches both walls
    loader = DataLoader(TensorDataset(images + shift, labels), 30)
    with pytest.raises(UserError, match=r"must be in \[0, 1\].*normalize"):
        run(model, loader)


def test_no_images(model):
    with pytest.raises(UserError, match="no images"):
        run(model, [])


def test_nan_logits_are_an_error_when_clean_too(model):
    with pytest.raises(NonFiniteLoss):
        run(lambda images: model(images) * float("nan"), data(model))


def test_progress_shows_label_and_both_accuracies(model, capsys, monkeypatch):
    monkeypatch.setattr(loop, "tqdm", partial(loop.tqdm, file=sys.stderr, ncols=120, mininterval=0))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    run(model, data(model), THREAT, desc="robustness")
    bars = capsys.readouterr().err.split("\r")
    last = bars[-1]
    assert last.startswith("robustness, pgd-5: 100%") and "30/30" in last and "robust=" in last
    clean = [line for line in bars if "clean:" in line][-1]
    assert "4/4" in clean and "clean=80.0%" in clean


def test_no_bar_where_nobody_watches(model, capsys):
    run(model, data(model), THREAT)
    assert capsys.readouterr().err == ""
