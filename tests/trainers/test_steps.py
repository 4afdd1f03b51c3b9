"""One training step of each method equals the same step written out plainly."""

import copy
from types import SimpleNamespace

import pytest
import torch

LR, DECAY = 0.02, 5e-4  # of the config in tests/conftest.py, and Dassl's default
EPS, ALPHA, STEPS = 1 / 255, 0.7 / 255, 2
CLEAN = ("CoOp", "VPT", "IVLP", "MaPLe")
ADVERSARIAL = ("APT", "AdvVPT", "AdvIVLP", "AdvMaPLe")
EVERY_TERM = {"CE": 0.3, "KD": 0.7, "NAT": 0.2, "KD_NAT": 0.5, "IMG": 0.4, "TXT": 0.6}


@pytest.fixture
def one_step(build, tmp_path):
    """Function: train a method for one epoch of one step.

    Returns the trainer after it, the batch, the losses it reports, the random state and copies of
    the models before it.
    """

    def one_step(method, *options, batch=8):
        trainer = build(
            method,
            tmp_path / "out",
            "OPTIM.MAX_EPOCH",
            1,
            "OPTIM.WARMUP_EPOCH",
            0,
            "DATALOADER.TRAIN_X.BATCH_SIZE",
            batch,
            "TEST.NO_TEST",
            True,
            *options,
        )
        step, seen = trainer.forward_backward, []

        def recorded(batch):
            before = SimpleNamespace(
                trainer=trainer,
                images=batch["img"],
                labels=batch["label"],
                random=torch.get_rng_state(),
                student=copy.deepcopy(trainer.model),
                teacher=copy.deepcopy(getattr(trainer, "teacher", None)),
            )
            before.losses = step(batch)
            seen.append(before)
            return before.losses

        trainer.forward_backward = recorded
        trainer.train()
        return seen[0]

    return one_step


def logits(model, images):
    image, text = model.image_features(images), model.text_features()
    return model.clip.logit_scale.exp() * image @ text.t()


def ce(z, labels):
    return -torch.stack([row.log_softmax(0)[y] for row, y in zip(z, labels)]).mean()


def kl(target, z, tau=1.0):
    """tau^2 KL(target || z), mean over the batch."""
    p, q = (target / tau).softmax(1), (z / tau).softmax(1)
    return tau**2 * (p * (p.log() - q.log())).sum(1).mean()


def attack(step, images, loss):
    """PGD on the student as it was before the step, up the sum of ``loss`` of its logits."""
    torch.set_rng_state(step.random)
    x = (images + torch.empty_like(images).uniform_(-EPS, EPS)).clamp(0, 1)
    for _ in range(STEPS):
        x.requires_grad_()
        (gradient,) = torch.autograd.grad(len(images) * loss(logits(step.student, x)), x)
        x = x.detach() + ALPHA * gradient.sign()
        x = (images + (x - images).clamp(-EPS, EPS)).clamp(0, 1)
    return x


def assert_stepped(learner, before, loss, lr=LR):
    """``learner`` took one SGD step down ``loss``, which depends on the prompts ``before`` it."""
    names, old = zip(*before.named_parameters())
    gradients = torch.autograd.grad(loss, old, retain_graph=True)
    new = dict(learner.named_parameters())
    assert set(names) == set(new)
    for name, p, gradient in zip(names, old, gradients):
        scale = gradient.abs().max()
        assert scale > 1e-5, f"{name} has no part in the loss: nothing is tested"
        torch.testing.assert_close(new[name].grad / scale, gradient / scale, rtol=0, atol=1e-5)
        torch.testing.assert_close(
            new[name].detach(), (p - lr * (gradient + DECAY * p)).detach(), rtol=0, atol=1e-6
        )


@pytest.mark.parametrize("method", CLEAN)
def test_clean_methods_minimise_ce_on_clean_images(one_step, method):
    step = one_step(method)
    loss = ce(logits(step.student, step.images), step.labels)
    assert step.losses["loss"] == pytest.approx(loss.item(), abs=1e-6)
    assert_stepped(step.trainer.model.prompt_learner, step.student.prompt_learner, loss)


@pytest.mark.parametrize("method", ADVERSARIAL)
def test_adversarial_methods_minimise_ce_on_attacked_images(one_step, method):
    step = one_step(method)
    x = attack(step, step.images, lambda z: ce(z, step.labels))
    loss = ce(logits(step.student, x), step.labels)
    assert step.losses["loss"] == pytest.approx(loss.item(), abs=1e-6)
    assert loss > ce(logits(step.student, step.images), step.labels) + 1e-3
    assert_stepped(step.trainer.model.prompt_learner, step.student.prompt_learner, loss)


@pytest.mark.parametrize("batch, clean", [(8, 4), (7, 3)])
def test_adv_half_attacks_the_second_half(one_step, batch, clean):
    step = one_step("AdvIVLP", "AT.TRAIN.AT_LOSS_TYPE", "adv_half", batch=batch)
    images, labels = step.images, step.labels
    x = attack(step, images[clean:], lambda z: ce(z, labels[clean:]))
    loss = ce(logits(step.student, torch.cat([images[:clean], x])), labels)
    assert step.losses["loss"] == pytest.approx(loss.item(), abs=1e-6)
    assert_stepped(step.trainer.model.prompt_learner, step.student.prompt_learner, loss)


def test_loss_type_clean_attacks_nothing(one_step):
    step = one_step("AdvIVLP", "AT.TRAIN.AT_LOSS_TYPE", "clean")
    loss = ce(logits(step.student, step.images), step.labels)
    assert step.losses["loss"] == pytest.approx(loss.item(), abs=1e-6)
    assert_stepped(step.trainer.model.prompt_learner, step.student.prompt_learner, loss)


def test_adv_half_attacks_a_single_image(one_step):
    one = ("DATASET.NUM_SHOTS", 1, "DATASET.SUBSAMPLE_CLASSES", "new")  # two steps of it
    step = one_step("AdvVPT", "AT.TRAIN.AT_LOSS_TYPE", "adv_half", *one, batch=1)
    x = attack(step, step.images, lambda z: ce(z, step.labels))
    loss = ce(logits(step.student, x), step.labels)
    assert step.losses["loss"] == pytest.approx(loss.item(), abs=1e-6)


def apd_losses(step, weights, attack_loss, tau=1.0, beta=0.0, teacher_tau=1.0):
    """METHOD.md's steps 1 to 3: the student's loss and the teacher's."""
    images, labels, student, teacher = step.images, step.labels, step.student, step.teacher
    z_t = logits(teacher, images)
    target = z_t.detach() / teacher_tau
    up = {"ce": lambda z: ce(z, labels), "kl": lambda z: kl(target, z)}[attack_loss]
    x = attack(step, images, up)
    z_s = logits(student, x)
    cos = torch.nn.functional.cosine_similarity
    v_s, v_t = student.image_features(x), teacher.image_features(images).detach()
    t_s, t_t = student.text_features(), teacher.text_features().detach()
    terms = {
        "CE": ce(z_s, labels),
        "KD": kl(target, z_s, tau),
        "NAT": ce(logits(student, images), labels),
        "KD_NAT": kl(target, logits(student, images), tau),
        "IMG": (1 - cos(v_s, v_t)).mean(),
        "TXT": 1 - cos(t_s, t_t).mean(),
    }
    loss = sum(weights[name] * terms[name] for name in weights)
    return loss, ce(z_t, labels) + beta * kl(z_s.detach(), z_t, tau)


def options_of(weights, **more):
    pairs = {f"LAMBDA_{name}": value for name, value in weights.items()} | more
    return [item for key, value in pairs.items() for item in (f"TRAINER.APD.{key}", value)]


@pytest.mark.parametrize("attack_loss", ["ce", "kl"])
def test_apd_online_with_every_term(one_step, attack_loss):
    options = options_of(EVERY_TERM, TAU=2, BETA=0.5, ATTACK_LOSS=attack_loss)
    step = one_step("APD", *options, "TRAINER.APD.TEACHER.TAU", 0.5)
    student, teacher = apd_losses(step, EVERY_TERM, attack_loss, 2.0, 0.5, teacher_tau=0.5)
    assert step.losses["student"] == pytest.approx(student.item(), abs=1e-6)
    assert step.losses["teacher"] == pytest.approx(teacher.item(), abs=1e-6)
    assert_stepped(step.trainer.model.prompt_learner, step.student.prompt_learner, student)
    parts = step.trainer.teacher.prompt_learner, step.teacher.prompt_learner
    assert_stepped(*parts, teacher, lr=0.1 * LR)


def test_apd_defaults_are_half_ce_half_distillation_no_feedback_and_a_slow_teacher(one_step):
    step = one_step("APD")
    student, teacher = apd_losses(step, {"CE": 0.5, "KD": 0.5}, "ce")
    assert step.losses["student"] == pytest.approx(student.item(), abs=1e-6)
    assert_stepped(step.trainer.model.prompt_learner, step.student.prompt_learner, student)
    parts = step.trainer.teacher.prompt_learner, step.teacher.prompt_learner
    assert_stepped(*parts, teacher, lr=0.1 * LR)


def test_an_online_teacher_has_a_learning_rate_of_its_own(one_step):
    step = one_step("APD", "TRAINER.APD.TEACHER.LR", 0.5)
    student, teacher = apd_losses(step, {"CE": 0.5, "KD": 0.5}, "ce")
    assert_stepped(step.trainer.model.prompt_learner, step.student.prompt_learner, student)
    parts = step.trainer.teacher.prompt_learner, step.teacher.prompt_learner
    assert_stepped(*parts, teacher, lr=0.5 * LR)


@pytest.mark.parametrize("name", EVERY_TERM)
def test_apd_each_term_alone(one_step, name):
    weights = dict.fromkeys(EVERY_TERM, 0.0) | {name: 1.5}
    step = one_step("APD", *options_of(weights))
    student, _ = apd_losses(step, {name: 1.5}, "ce")
    assert step.losses["student"] == pytest.approx(student.item(), abs=1e-6)


def test_apd_with_a_frozen_teacher(one_step):
    step = one_step("APD", *options_of(EVERY_TERM, TAU=2), "TRAINER.APD.TEACHER.MODE", "frozen")
    student, _ = apd_losses(step, EVERY_TERM, "ce", tau=2.0)
    assert step.losses["student"] == pytest.approx(student.item(), abs=1e-6)
    assert step.losses["teacher"] == 0
    assert_stepped(step.trainer.model.prompt_learner, step.student.prompt_learner, student)


def test_apd_losses_reach_their_own_prompts_only(build, tmp_path):
    trainer = build("APD", tmp_path / "out", *options_of(EVERY_TERM, TAU=2, BETA=0.5))
    batch = next(iter(trainer.train_loader_x))
    losses = trainer.losses(batch["img"], batch["label"])
    student, teacher = (
        list(model.prompt_learner.parameters()) for model in (trainer.model, trainer.teacher)
    )
    for loss, own, other in (("student", student, teacher), ("teacher", teacher, student)):
        gradients = torch.autograd.grad(
            losses[loss], own + other, retain_graph=True, allow_unused=True
        )
        assert all(g is not None and g.abs().max() > 0 for g in gradients[: len(own)])
        assert all(g is None for g in gradients[len(own) :])


def test_long_gradients_are_clipped_the_teachers_apart(one_step):
    limit = 1e-3
    step = one_step("APD", "OPTIM.CLIP_NORM", limit, "TRAINER.APD.TEACHER.LR", 1.0)
    student, teacher = apd_losses(step, {"CE": 0.5, "KD": 0.5}, "ce")
    trained = (step.trainer.model, step.student), (step.trainer.teacher, step.teacher)
    for (new, old), loss in zip(trained, (student, teacher)):
        old, new = (list(model.prompt_learner.parameters()) for model in (old, new))
        gradients = torch.autograd.grad(loss, old, retain_graph=True)
        scale = limit / torch.cat([g.flatten() for g in gradients]).norm()
        assert scale < 0.5
        for before, after, gradient in zip(old, new, gradients):
            expected = before - LR * (scale * gradient + DECAY * before)
            torch.testing.assert_close(after.detach(), expected.detach(), rtol=0, atol=1e-7)
