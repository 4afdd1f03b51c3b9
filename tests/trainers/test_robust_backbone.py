"""MODEL.BACKBONE.ROBUST: any trainer on an adversarially fine-tuned image encoder; RESOLUTION."""

import pytest
import torch

from apd.results import read_results

METHODS = ("ZeroshotCLIP", "CoOp", "AdvPT", "AdvVPT", "FAP", "APD")  # one of each way to train


@pytest.fixture(scope="module")
def robust(tiny, tmp_path_factory):
    """Path of another image encoder for the tiny CLIP, in TeCoA's layout, and its weights."""
    draw = torch.Generator().manual_seed(7)
    weights = {
        name.removeprefix("visual."): value + 0.05 * torch.randn(value.shape, generator=draw)
        for name, value in torch.load(tiny.clip, weights_only=True).items()
        if name.startswith("visual.")
    }
    path = tmp_path_factory.mktemp("robust") / "tecoa_eps1.pth.tar"
    torch.save({"epoch": 1, "vision_encoder_state_dict": weights}, path)
    return str(path), weights


def encoder_of(model):
    return model.clip.visual.state_dict()


def equal(state, weights):
    return all(torch.equal(state[name], value) for name, value in weights.items())


@pytest.mark.parametrize("method", METHODS)
def test_methods_train_on_a_robust_encoder(run, tmp_path, robust, method):
    path, weights = robust
    result = run(method, tmp_path, "MODEL.BACKBONE.ROBUST", path)
    assert (result.code, result.err) == (0, "")
    assert equal(encoder_of(result.trainer.model), weights)
    assert read_results(tmp_path)["backbone"].endswith("clip.pt (tecoa_eps1.pth.tar)")


@pytest.mark.parametrize("mode", ["online", "offline", "frozen"])
def test_apds_teacher_is_not_robust_unless_asked(run, tmp_path, robust, tiny, mode):
    path, weights = robust
    student = ("MODEL.BACKBONE.ROBUST", path, "TRAINER.APD.TEACHER.MODE", mode)
    student += ("OPTIM.MAX_EPOCH", 1, "TEST.NO_TEST", True)
    clean = run("APD", tmp_path / "clean", *student).trainer
    assert equal(encoder_of(clean.model), weights)
    own = torch.load(tiny.clip, weights_only=True)
    assert equal(
        {f"visual.{k}": v for k, v in encoder_of(clean.teacher).items()},
        {k: v for k, v in own.items() if k.startswith("visual.")},
    )
    both = run("APD", tmp_path / "both", *student, "TRAINER.APD.TEACHER.ROBUST", path).trainer
    assert equal(encoder_of(both.teacher), weights)
    assert both.teacher.clip is both.model.clip  # one CLIP in memory, not two


def test_a_robust_teacher_of_a_student_that_is_not(run, tmp_path, robust):
    path, weights = robust
    options = ("TRAINER.APD.TEACHER.ROBUST", path, "TEST.NO_TEST", True)
    trainer = run("APD", tmp_path, *options).trainer
    assert equal(encoder_of(trainer.teacher), weights)
    assert not equal(encoder_of(trainer.model), weights)


def test_a_file_that_does_not_fit_is_refused_before_anything_is_written(run, tmp_path, tiny):
    result = run("CoOp", tmp_path / "out", "MODEL.BACKBONE.ROBUST", tiny.wide)
    assert result.code == 2 and result.err.count("\n") == 1
    assert "does not fit the image encoder" in result.err
    assert not (tmp_path / "out").exists()


# -- MODEL.BACKBONE.RESOLUTION ----------------------------------------------------------------


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_a_vit_trains_at_another_resolution_and_its_teacher_too(run, tmp_path, mode):
    size = ("MODEL.BACKBONE.RESOLUTION", 48, "INPUT.SIZE", "(48, 48)")
    result = run("APD", tmp_path, *size, "TRAINER.APD.TEACHER.MODE", mode)
    assert (result.code, result.err) == (0, "")
    visual = result.trainer.model.clip.visual
    assert visual.input_resolution == 48
    assert len(visual.positional_embedding) == (48 // visual.conv1.kernel_size[0]) ** 2 + 1
    assert result.trainer.teacher.clip is result.trainer.model.clip
    assert read_results(tmp_path)["backbone"].endswith("clip.pt at 48")


def test_another_input_size_alone_is_refused_with_both_ways_out(run, tmp_path):
    result = run("CoOp", tmp_path / "out", "INPUT.SIZE", "(48, 48)")
    assert result.code == 2 and result.err.count("\n") == 1
    assert "set INPUT.SIZE to that, or MODEL.BACKBONE.RESOLUTION to yours" in result.err
