"""How often the encoders run: the text encoder once a step, and no pass that no loss reads."""

from types import SimpleNamespace

import pytest

import apd.clip.model

BATCHES, STEPS = 2, 2  # an epoch of tests/conftest.py, its attack


@pytest.fixture
def passes(build, tmp_path, monkeypatch):
    """Function: passes of each encoder in one training step of a method, averaged over an epoch;
    no text pass may be in an attack."""

    def passes(method, *options):
        short = ("OPTIM.MAX_EPOCH", 1, "TEST.NO_TEST", True)
        trainer = build(method, tmp_path / "out", *short, *options)
        count = SimpleNamespace(text=0, image=0, text_in_attack=0)
        attacking = False

        def counted(name, encode):
            def wrapper(*args, **more):
                setattr(count, name, getattr(count, name) + 1)
                count.text_in_attack += attacking and name == "text"
                return encode(*args, **more)

            return wrapper

        for name in ("text", "image"):
            encode = getattr(apd.clip.model, f"encode_{name}")
            monkeypatch.setattr(apd.clip.model, f"encode_{name}", counted(name, encode))
        if hasattr(trainer, "attack"):
            attack = trainer.attack

            def watched(*args, **more):
                nonlocal attacking
                attacking = True
                try:
                    return attack(*args, **more)
                finally:
                    attacking = False

            trainer.attack = watched
        trainer.train()
        assert count.text_in_attack == 0
        return count.text / BATCHES, count.image / BATCHES

    return passes


@pytest.mark.parametrize("method", ["CoOp", "IVLP", "MaPLe"])
def test_a_clean_step_costs_one_pass_each(passes, method):
    assert passes(method) == (1, 1)


@pytest.mark.parametrize("method", ["APT", "AdvIVLP", "AdvMaPLe"])
def test_an_adversarial_step_costs_one_text_pass_and_one_image_pass_beyond_the_attack(
    passes, method
):
    assert passes(method) == (1, STEPS + 1)


def test_hand_written_text_is_encoded_once_a_run(passes):
    text, image = passes("AdvVPT")
    assert (text * BATCHES, image) == (1, STEPS + 1)


def test_an_unattacked_batch_costs_no_attack(passes):
    assert passes("AdvIVLP", "AT.TRAIN.AT_LOSS_TYPE", "clean") == (1, 1)


def test_apd_adds_one_pass_of_the_teacher(passes):
    assert passes("APD") == (2, STEPS + 2)


def test_apd_terms_that_reuse_features_cost_nothing(passes):
    weights = ("LAMBDA_IMG", "LAMBDA_TXT", "BETA")
    options = [item for name in weights for item in (f"TRAINER.APD.{name}", 0.5)]
    assert passes("APD", *options) == (2, STEPS + 2)


def test_apd_clean_term_costs_one_image_pass(passes):
    assert passes("APD", "TRAINER.APD.LAMBDA_NAT", 0.5) == (2, STEPS + 3)


def test_apd_frozen_teacher_encodes_its_text_once_a_run(passes):
    text, image = passes("APD", "TRAINER.APD.TEACHER.MODE", "frozen")
    assert (text * BATCHES, image) == (BATCHES + 1, STEPS + 2)


def test_cbafapt_reads_logits_and_maps_in_one_pass(passes, monkeypatch):
    seen, attention = [], apd.clip.model.image_attention
    monkeypatch.setattr(
        apd.clip.model, "image_attention", lambda *a: seen.append(1) or attention(*a)
    )
    assert passes("CBAFAPT") == (1, STEPS)
    assert len(seen) == 2 * BATCHES  # clean and attacked


def test_an_evaluation_encodes_text_once(build, tmp_path, monkeypatch):
    trainer = build("APT", tmp_path / "out")
    assert len(trainer.test_loader) > 1
    calls, encode = [], apd.clip.model.encode_text
    monkeypatch.setattr(
        apd.clip.model, "encode_text", lambda *a, **k: calls.append(1) or encode(*a, **k)
    )
    # of a model below 50 %, zero-shot CLIP is evaluated too
    monkeypatch.setattr(trainer, "zero_shot_accuracy", lambda *_: 0.0)
    trainer.test()
    assert len(calls) == 1
