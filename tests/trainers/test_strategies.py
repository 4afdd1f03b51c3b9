"""What APT and AdvPT attack, and when."""

from types import SimpleNamespace

import pytest
import torch

import apd.clip.model
from apd.results import read_results

PERTURBED = ("AT.TRAIN.PROMPT", "perturbed", "AT.TRAIN.PALPHA", 0.1)


def prompts(folder):
    return torch.load(folder / "prompt_learner/model.pth.tar-2", weights_only=True)["state_dict"]


def test_apts_strategies_train_different_prompts(run, tmp_path):
    found = []
    for options in ((), ("AT.TRAIN.PROMPT", "constant"), PERTURBED):
        result = run("APT", tmp_path / str(len(found)), *options)
        assert (result.code, result.err) == (0, "")
        found.append(prompts(tmp_path / str(len(found)))["text.0"])
    for i in range(3):
        assert not torch.equal(found[i], found[i - 1])


def test_perturbing_at_rate_0_is_onfly(run, tmp_path):
    run("APT", tmp_path / "onfly")
    run("APT", tmp_path / "zero", "AT.TRAIN.PROMPT", "perturbed", "AT.TRAIN.PALPHA", 0.0)
    zero, onfly = prompts(tmp_path / "zero")["text.0"], prompts(tmp_path / "onfly")["text.0"]
    torch.testing.assert_close(zero, onfly, rtol=0, atol=1e-6)


def test_perturbed_prompts_are_forgotten_after_the_attack(build, tmp_path):
    trainer = build("APT", tmp_path, *PERTURBED)
    batch = next(iter(trainer.train_loader_x))
    (context,) = trainer.model.prompt_learner.text
    before = context.detach().clone()
    trainer.attack(batch["img"], batch["label"], trainer.model.text_features())
    assert torch.equal(context, before) and context.grad is None
    assert trainer.model.prompt_learner.text[0] is context


@pytest.mark.parametrize(
    "options, text",
    [(("AT.TRAIN.PROMPT", "constant"), 1), (PERTURBED, 1 + 2)],  # one more an attack step
    ids=["constant", "perturbed"],
)
def test_text_passes_of_a_step(build, tmp_path, monkeypatch, options, text):
    trainer = build("APT", tmp_path, *options)
    calls, encode = [], apd.clip.model.encode_text
    monkeypatch.setattr(
        apd.clip.model, "encode_text", lambda *a, **k: calls.append(1) or encode(*a, **k)
    )
    batch = next(iter(trainer.train_loader_x))
    trainer.losses(batch["img"], batch["label"])
    assert len(calls) == text


def test_advpt_attacks_each_training_image_once_and_never_sees_one_again(
    build, tmp_path, monkeypatch
):
    trainer = build("AdvPT", tmp_path, "OPTIM.MAX_EPOCH", 3, "TEST.NO_TEST", True)
    seen, encode = [], apd.clip.model.encode_image

    def counted(visual, images, contexts):
        seen.append(len(images))
        return encode(visual, images, contexts)

    monkeypatch.setattr(apd.clip.model, "encode_image", counted)
    trainer.train()
    # 2 shots of 4 classes in one batch: clean, two attack steps, attacked
    assert seen == [8] * 4


def test_advpts_embeddings_are_those_of_attacked_images_in_the_ball(build, tmp_path, monkeypatch):
    import apd.trainers.advpt as advpt

    trainer, made, pgd = build("AdvPT", tmp_path), [], advpt.pgd

    def recorded(logits_fn, images, labels, threat, **more):
        made.append((images, pgd(logits_fn, images, labels, threat, **more), labels))
        assert threat.loss == "kl" and threat.eps == 1.0
        return made[-1][1]

    monkeypatch.setattr(advpt, "pgd", recorded)
    stored = trainer.adversarial_embeddings()
    ((images, attacked, labels),) = made
    assert 0 < (attacked - images).abs().max() <= 1 / 255 + 1e-7
    with torch.no_grad():
        want = trainer.clip_model.encode_image((attacked - trainer.model.mean) / trainer.model.std)
    got = torch.stack([item["img"] for item in stored])
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
    assert [int(item["label"]) for item in stored] == labels.tolist()


def test_advpts_images_are_not_augmented(build, tmp_path):
    one, two = (
        torch.stack(
            [
                item["img"]
                for item in build(
                    "AdvPT", tmp_path / name, flags=("--transforms", *augmentations)
                ).adversarial_embeddings()
            ]
        )
        for name, augmentations in (("a", ["random_flip"]), ("b", ["random_resized_crop"]))
    )
    assert torch.equal(one, two)


def test_making_embeddings_counts_as_training_time(run, tmp_path, monkeypatch):
    import apd.trainers.advpt as advpt

    clock = SimpleNamespace(time=iter([1000.0, 1700.0]).__next__)  # before and after
    monkeypatch.setattr(advpt, "time", clock)
    trainer = run("AdvPT", tmp_path, "OPTIM.MAX_EPOCH", 1).trainer
    (epoch,) = trainer.history
    assert read_results(tmp_path)["train_seconds"] == pytest.approx(700 + epoch["seconds"])
