"""APD's teachers: online, offline, frozen, from a checkpoint, and of another backbone."""

import shutil

import clip
import pytest
import torch

from apd.results import read_results

TEACHER = "TRAINER.APD.TEACHER"
TEXT, VISION = 64, 128
BIMODAL = 2 * 2 * TEXT + 2 * 2 * VISION
COUPLED = 2 * 2 * TEXT + 2 * (TEXT * VISION + VISION)


@pytest.fixture(scope="module")
def ivlp(run, tmp_path_factory):
    """The folder of a finished IVLP run."""
    folder = tmp_path_factory.mktemp("ivlp")
    assert run("IVLP", folder, "OPTIM.MAX_EPOCH", 1).code == 0
    return folder


def state(folder, name, epoch):
    path = folder / name / f"model.pth.tar-{epoch}"
    return torch.load(path, weights_only=True)["state_dict"]


def assert_equal(learner, wanted):
    got = learner.state_dict()
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(got[name], value), name


def test_online_trains_a_teacher_of_its_own(run, tmp_path):
    result = run("APD", tmp_path)
    student, teacher = (state(tmp_path, name, 2) for name in ("prompt_learner", "teacher"))
    assert student.keys() == teacher.keys()
    assert not any(torch.equal(student[name], teacher[name]) for name in student)
    assert read_results(tmp_path)["trainable_parameters"] == 2 * BIMODAL
    assert_equal(result.trainer.teacher.prompt_learner, teacher)


def test_frozen_is_clip_with_the_hand_written_template(run, tmp_path):
    result = run("APD", tmp_path, f"{TEACHER}.MODE", "frozen")
    assert (result.code, result.err) == (0, "")
    teacher = result.trainer.teacher
    assert list(teacher.prompt_learner.parameters()) == []
    assert not (tmp_path / "teacher").exists()
    assert read_results(tmp_path)["trainable_parameters"] == BIMODAL
    names = ("circle", "square", "star", "triangle")
    words = clip.tokenize([f"a photo of a {name}." for name in names])
    with torch.no_grad():
        want = torch.nn.functional.normalize(teacher.clip.encode_text(words), dim=-1)
    torch.testing.assert_close(teacher.text_features(), want, rtol=0, atol=1e-6)


def test_offline_tunes_the_teacher_first_and_freezes_it(run, tmp_path):
    result = run("APD", tmp_path, f"{TEACHER}.MODE", "offline")
    assert (result.code, result.err) == (0, "")
    checkpoint = torch.load(
        tmp_path / "teacher" / "prompt_learner" / "model.pth.tar-2", weights_only=True
    )
    assert checkpoint["method"] == "IVLP"
    assert_equal(result.trainer.teacher.prompt_learner, checkpoint["state_dict"])
    assert not any(p.requires_grad for p in result.trainer.teacher.parameters())
    # the teacher is a means, not a result
    assert not (tmp_path / "teacher" / "results.json").exists()
    assert read_results(tmp_path)["trainable_parameters"] == BIMODAL


def test_offline_teacher_is_tuned_on_clean_images_by_ce(build, tmp_path):
    trainer = build("APD", tmp_path, f"{TEACHER}.MODE", "offline")
    before = [p.clone() for p in trainer.teacher.prompt_learner.parameters()]
    losses = []
    from apd.trainers.ivlp import IVLP

    def recorded(self, images, labels, plain=IVLP.losses):
        assert type(self) is IVLP
        losses.append(plain(self, images, labels))
        want = torch.nn.functional.cross_entropy(self.model(images), labels)
        torch.testing.assert_close(losses[-1]["loss"], want)
        return losses[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(IVLP, "losses", recorded)
        trainer.before_train()
    assert len(losses) == 4  # 2 epochs of 2 batches
    after = trainer.teacher.prompt_learner.parameters()
    assert not any(torch.equal(a, b) for a, b in zip(after, before))


def test_offline_teacher_that_is_ready_is_used_again(run, tmp_path, monkeypatch):
    options = (f"{TEACHER}.MODE", "offline")
    assert run("APD", tmp_path / "a", *options).code == 0
    shutil.copytree(tmp_path / "a" / "teacher", tmp_path / "b" / "teacher")
    assert run("APD", tmp_path / "b", *options).code == 0
    first, second = (state(tmp_path / name, "prompt_learner", 2) for name in "ab")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_checkpoint_loads_an_ivlp_run_and_keeps_it(run, tmp_path, ivlp):
    result = run("APD", tmp_path, f"{TEACHER}.MODE", "checkpoint", f"{TEACHER}.PATH", ivlp)
    assert (result.code, result.err) == (0, "")
    assert_equal(result.trainer.teacher.prompt_learner, state(ivlp, "prompt_learner", 1))
    assert not any(p.requires_grad for p in result.trainer.teacher.parameters())
    assert not (tmp_path / "teacher").exists()
    assert read_results(tmp_path)["trainable_parameters"] == BIMODAL


def test_checkpoint_of_another_method_is_refused(run, tmp_path):
    other, out = tmp_path / "adv", tmp_path / "out"
    assert run("AdvIVLP", other, "OPTIM.MAX_EPOCH", 1).code == 0
    result = run("APD", out, f"{TEACHER}.MODE", "checkpoint", f"{TEACHER}.PATH", other)
    assert result.code == 2 and result.err.count("\n") == 1
    assert "prompts of AdvIVLP, not of IVLP" in result.err
    assert not out.exists()


@pytest.mark.parametrize("path", ["nowhere", ""])
def test_checkpoint_that_is_not_there_is_refused(run, tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    result = run("APD", tmp_path / "out", f"{TEACHER}.MODE", "checkpoint", f"{TEACHER}.PATH", path)
    assert result.code == 2 and result.err.count("\n") == 1
    assert "TEACHER.PATH" in result.err
    assert not (tmp_path / "out").exists()


def test_unknown_mode_is_refused(run, tmp_path):
    result = run("APD", tmp_path / "out", f"{TEACHER}.MODE", "offlime")
    assert result.code == 2
    assert result.err == (
        "error: command line: TRAINER.APD.TEACHER.MODE is offlime: use online, offline, frozen or "
        "checkpoint\n"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("mode", ["online", "offline", "frozen"])
def test_teacher_of_another_backbone_sees_resized_images(run, tmp_path, tiny, monkeypatch, mode):
    from apd.clip import PromptedCLIP

    sizes, encode = {}, PromptedCLIP.image_features

    def recorded(self, images):
        assert images.min() >= 0 and images.max() <= 1
        sizes.setdefault(self.clip.visual.input_resolution, set()).add(images.shape[-1])
        return encode(self, images)

    monkeypatch.setattr(PromptedCLIP, "image_features", recorded)
    result = run(
        "APD",
        tmp_path,
        f"{TEACHER}.BACKBONE",
        tiny.wide,
        f"{TEACHER}.MODE",
        mode,
        "TRAINER.APD.BETA",
        0.5,
    )
    assert (result.code, result.err) == (0, "")
    assert sizes == {32: {32}, 64: {64}}
    assert result.trainer.teacher.clip is not result.trainer.model.clip
    assert result.trainer.teacher.clip.text_projection.shape[1] == 48


def test_resized_images_are_the_same_picture(build, tmp_path, tiny):
    trainer = build("APD", tmp_path, f"{TEACHER}.BACKBONE", tiny.wide)
    ramp = torch.linspace(0, 1, 32).expand(1, 3, 32, 32)
    large = trainer.for_teacher(ramp)
    wanted = torch.linspace(0, 1, 64).expand(1, 3, 64, 64)
    torch.testing.assert_close(large, wanted, rtol=0, atol=0.02)
    assert large.min() >= 0 and large.max() <= 1
    same = build("APD", tmp_path)
    assert same.for_teacher(ramp) is ramp


@pytest.mark.parametrize("term", ["LAMBDA_IMG", "LAMBDA_TXT"])
def test_feature_terms_need_equal_widths(run, tmp_path, tiny, term):
    options = (f"{TEACHER}.BACKBONE", tiny.wide, f"TRAINER.APD.{term}", 0.5)
    result = run("APD", tmp_path / "out", *options)
    assert result.code == 2 and result.err.count("\n") == 1
    assert "student has 32, teacher 48" in result.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("mode, extra", [("frozen", 0), ("online", BIMODAL)])
def test_coupled_student(run, tmp_path, mode, extra):
    result = run("APD", tmp_path, "TRAINER.APD.COUPLED", True, f"{TEACHER}.MODE", mode)
    assert (result.code, result.err) == (0, "")
    results = read_results(tmp_path)
    assert results["trainable_parameters"] == COUPLED + extra
    assert results["modality"] == "text + visual"
    learner = result.trainer.model.prompt_learner
    assert type(learner).__name__ == "CoupledPrompts"
    assert [c.shape for c in learner.visual_contexts()] == [(2, VISION)] * 2
