"""The attack of training goes through the prompts as they are at that step (ADAPT, Eskandar 2025,
arXiv 2403.13196: an attack that does not is obfuscated by them)."""

import pytest
import torch

import apd.training.adversarial as adversarial
from apd.errors import UserError


@pytest.fixture
def attacked(build, tmp_path, monkeypatch):
    """Function: train a method; of each attack, the logits that it saw and the model's own."""

    def attacked(method, *options):
        trainer = build(
            method, tmp_path / "out", "OPTIM.MAX_EPOCH", 1, "TEST.NO_TEST", True, *options
        )
        seen, pgd = [], adversarial.pgd

        def watched(logits_fn, images, *rest, **more):
            with torch.no_grad():
                seen.append((logits_fn(images), trainer.model(images)))
            return pgd(logits_fn, images, *rest, **more)

        monkeypatch.setattr(adversarial, "pgd", watched)
        trainer.train()
        assert len(seen) > 1
        return seen

    return attacked


@pytest.mark.parametrize(
    "method", ["APT", "AdvVPT", "AdvIVLP", "AdvMaPLe", "FAP", "CBAFAPT", "MMoP", "APD"]
)
def test_every_step_attacks_the_current_prompts(attacked, method):
    seen = attacked(method)
    for logits, own in seen:
        torch.testing.assert_close(logits, own, rtol=1e-4, atol=1e-4)
    assert not torch.equal(seen[0][0], seen[-1][0])  # the prompts have moved


def test_apts_constant_prompt_does_not(attacked):
    logits, own = attacked("APT", "AT.TRAIN.PROMPT", "constant")[-1]
    assert not torch.allclose(logits, own, rtol=1e-4, atol=1e-4)


def test_warm_up_lets_the_ball_grow_over_a_part_of_the_epochs(build, tmp_path, monkeypatch):
    trainer = build(
        "AdvIVLP",
        tmp_path / "out",
        "OPTIM.MAX_EPOCH",
        5,
        "TEST.NO_TEST",
        True,
        "AT.TRAIN.EPS",
        4.0,
        "AT.TRAIN.ALPHA",
        2.0,
        "AT.TRAIN.EPS_WARMUP",
        0.8,
    )
    seen, pgd = [], adversarial.pgd

    def watched(logits_fn, images, labels, threat, **more):
        seen.append((trainer.epoch, threat.eps, threat.alpha))
        return pgd(logits_fn, images, labels, threat, **more)

    monkeypatch.setattr(adversarial, "pgd", watched)
    trainer.train()
    assert sorted(set(seen)) == [(0, 1, 0.5), (1, 2, 1), (2, 3, 1.5), (3, 4, 2), (4, 4, 2)]
    assert trainer.train_threat.eps == 4


def test_advpt_has_no_epochs_to_warm_up_over(build, tmp_path):
    with pytest.raises(UserError, match="EPS_WARMUP must be 0"):
        build("AdvPT", tmp_path / "out", "AT.TRAIN.EPS_WARMUP", 0.5)
