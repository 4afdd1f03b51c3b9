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
        "error: command line: TRAINER.APD.TEACHER.MODE is offlime: use online, offline, frozen, "
        "checkpoint or auto\n"
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


# -- auto ------------------------------------------------------------------------------------------

AUTO = (f"{TEACHER}.MODE", "auto", "DATASET.VAL_SHOTS", 0)


def plain_counts(trainer, tuned):
    """Images that zero-shot CLIP, tuned prompts and the mean of both are right on."""
    frozen = trainer.build_prompted_clip(trainer.clip_model)
    right = dict.fromkeys(("frozen", "mean", "tuned"), 0)
    with torch.no_grad():
        for batch in trainer.dm.val_loader:
            p, q = frozen(batch["img"]).softmax(1), tuned(batch["img"]).softmax(1)
            for name, scores in (("frozen", p), ("tuned", q), ("mean", (p + q) / 2)):
                right[name] += int((scores.argmax(1) == batch["label"]).sum())
    return right


def test_auto_takes_the_teacher_that_is_right_on_most_validation_images(run, tmp_path):
    result = run("APD", tmp_path / "auto", *AUTO)
    assert (result.code, result.err) == (0, "")
    offline = run("APD", tmp_path / "offline", f"{TEACHER}.MODE", "offline", *AUTO[2:])
    right = plain_counts(result.trainer, offline.trainer.teacher)
    found = read_results(tmp_path / "auto")["teacher"]
    assert found["right"] == right and found["images"] == 8
    assert right[found["taken"]] == max(right.values())
    assert list(right) == ["frozen", "mean", "tuned"]
    assert found["taken"] == next(name for name in right if right[name] == max(right.values()))
    assert read_results(tmp_path / "auto")["trainable_parameters"] == BIMODAL
    assert "teacher" not in read_results(tmp_path / "offline")


@pytest.mark.parametrize(
    "right, taken",
    [
        ({"frozen": 5, "mean": 5, "tuned": 5}, "frozen"),
        ({"frozen": 4, "mean": 5, "tuned": 5}, "mean"),
        ({"frozen": 4, "mean": 4, "tuned": 5}, "tuned"),
    ],
)
def test_auto_teaches_by_what_it_takes_and_of_equals_by_what_learned_less(
    run, tmp_path, monkeypatch, right, taken
):
    from apd.trainers.apd import APD

    monkeypatch.setattr(APD, "count_right", lambda self: right)
    result = run("APD", tmp_path / "auto", *AUTO)
    assert (result.code, result.err) == (0, "")
    trainer, model = result.trainer, result.trainer.model
    tuned = state(tmp_path / "auto" / "teacher", "prompt_learner", 2)
    frozen = trainer.build_prompted_clip(trainer.clip_model)
    images = next(iter(trainer.dm.test_loader))["img"]
    model.prompt_learner.load_state_dict(tuned)  # of the same shape
    with torch.no_grad():
        each = {"frozen": frozen(images).softmax(1), "tuned": model(images).softmax(1)}
        each["mean"] = (each["frozen"] + each["tuned"]) / 2
    # what taught is what an adaptive attack of the finished run goes through
    teach = build_again(trainer, tmp_path / "auto").adaptive_model(tmp_path / "auto")[0]
    torch.testing.assert_close(teach(images).softmax(1), each[taken], rtol=1e-5, atol=1e-6)
    assert (trainer.second is None) == (taken != "mean")
    if taken == "tuned":  # to the bit
        assert run("APD", tmp_path / "b", f"{TEACHER}.MODE", "offline", *AUTO[2:]).code == 0
        ours, theirs = (state(tmp_path / name, "prompt_learner", 2) for name in ("auto", "b"))
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def build_again(trainer, folder):
    cfg = trainer.cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = str(folder / "again")
    return type(trainer)(cfg)


def test_auto_judges_once_and_resumes_to_the_same_bits(run, tmp_path, monkeypatch):
    from apd.trainers.apd import APD

    counts = {"frozen": 4, "mean": 5, "tuned": 4}
    monkeypatch.setattr(APD, "count_right", lambda self: counts)
    assert run("APD", tmp_path / "whole", *AUTO).code == 0

    def killed(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(APD, "before_epoch", killed)  # of APD: its teacher is an IVLP
        assert run("APD", tmp_path / "killed", *AUTO).code == 130
    monkeypatch.setattr(APD, "count_right", lambda self: pytest.fail("judged again"))
    assert run("APD", tmp_path / "killed", *AUTO).code == 0
    whole, again = (state(tmp_path / name, "prompt_learner", 2) for name in ("whole", "killed"))
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    found = [read_results(tmp_path / name)["teacher"] for name in ("whole", "killed")]
    assert found[0] == found[1] == {"taken": "mean", "right": counts, "images": 8}


def test_auto_draws_nothing_while_it_judges(build, tmp_path):
    trainer = build("APD", tmp_path, *AUTO)
    before = torch.get_rng_state()
    trainer.count_right()
    assert torch.equal(torch.get_rng_state(), before)


def test_auto_needs_validation_images_and_one_teacher_s_features(run, tmp_path, tiny):
    shutil.copytree(f"{tiny.root}/shapes", tmp_path / "shapes")
    shutil.rmtree(tmp_path / "shapes" / "val")
    result = run("APD", tmp_path / "out", *AUTO, flags=("--root", str(tmp_path)))
    assert result.code == 2 and result.err.count("\n") == 1
    assert "TEACHER.MODE is auto, but there are no validation images" in result.err
    result = run("APD", tmp_path / "other", *AUTO, "TRAINER.APD.LAMBDA_TXT", 1)
    assert result.code == 2 and result.err.count("\n") == 1
    assert "set LAMBDA_IMG and LAMBDA_TXT to 0" in result.err


def test_prompts_of_auto_are_evaluated_where_there_are_no_validation_images(run, tmp_path, tiny):
    assert run("APD", tmp_path / "auto", *AUTO).code == 0
    shutil.copytree(f"{tiny.root}/shapes", tmp_path / "data" / "shapes")
    shutil.rmtree(tmp_path / "data" / "shapes" / "val")
    flags = ("--root", str(tmp_path / "data"), "--eval-only", "--model-dir", str(tmp_path / "auto"))
    result = run("APD", tmp_path / "again", *AUTO, flags=flags)
    assert (result.code, result.err) == (0, "")
    first, again = (read_results(tmp_path / name) for name in ("auto", "again"))
    counts = [[e["correct"] for e in found["evaluations"]] for found in (first, again)]
    assert counts[0] == counts[1] and "teacher" not in again
