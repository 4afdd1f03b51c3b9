"""What CoOp's and VPT's options do to the prompts."""

import clip
import pytest
import torch
from torch.nn.functional import normalize

from apd.results import read_results

NAMES = ("circle", "square", "star", "triangle")


def text_of(trainer, *texts):
    """CLIP's own features of whole sentences."""
    with torch.no_grad():
        return normalize(trainer.clip_model.encode_text(clip.tokenize(list(texts))), dim=-1)


def test_coop_initial_words_decide_the_length(build, tmp_path):
    trainer = build(
        "CoOp", tmp_path, "TRAINER.COOP.CTX_INIT", "a_photo_of_a", "TRAINER.COOP.N_CTX", 16
    )
    (context,) = trainer.model.prompt_learner.text_contexts()
    words = clip.tokenize("a photo of a")[0, 1:5]
    assert torch.equal(context, trainer.clip_model.token_embedding.weight[words])
    got, want = (
        trainer.model.text_features(),
        text_of(trainer, *(f"a photo of a {name}." for name in NAMES)),
    )
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)


def test_coop_random_words_have_the_length_asked_for(build, tmp_path):
    trainer = build("CoOp", tmp_path, "TRAINER.COOP.N_CTX", 16)
    (context,) = trainer.model.prompt_learner.text_contexts()
    assert context.shape == (16, 64)
    assert 0.018 < context.std() < 0.022


def test_coop_class_specific_contexts_train_apart(run, tmp_path):
    result = run("CoOp", tmp_path, "TRAINER.COOP.CSC", True)
    (context,) = result.trainer.model.prompt_learner.text_contexts()
    assert context.shape == (4, 4, 64)
    assert not torch.equal(context[0], context[1])
    assert read_results(tmp_path)["trainable_parameters"] == 4 * 4 * 64


@pytest.mark.parametrize("method", ["CoOp", "APT"])
@pytest.mark.parametrize("position", ["middle", "front"])
def test_class_token_position(run, build, tmp_path, position, method):
    key = "TRAINER.COOP.CLASS_TOKEN_POSITION"
    words = ("TRAINER.COOP.CTX_INIT", "this is one large")
    trainer = build(method, tmp_path, key, position, *words)
    form = {"middle": "this is {} one large.", "front": "{} this is one large."}[position]
    torch.testing.assert_close(
        trainer.model.text_features(), text_of(trainer, *map(form.format, NAMES)), rtol=0, atol=1e-6
    )
    result = run(method, tmp_path, key, position, *words)
    assert (result.code, result.err) == (0, "")
    (trained,) = result.trainer.model.prompt_learner.text_contexts()
    (initial,) = trainer.model.prompt_learner.text_contexts()
    assert not any(torch.equal(a, b) for a, b in zip(trained, initial))


@pytest.mark.parametrize("method", ["VPT", "AdvVPT"])
def test_vpt_puts_its_words_before_the_class_name(build, tmp_path, method):
    trainer = build(method, tmp_path, f"TRAINER.{method}.CTX_INIT", "art_of")
    want = text_of(trainer, *(f"art of {name}." for name in NAMES))
    torch.testing.assert_close(trainer.model.text_features(), want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", ["VPT", "ZeroshotCLIP"])
def test_without_words_the_data_set_has_a_template(build, tmp_path, method):
    trainer = build(method, tmp_path, "DATASET.NAME", "Digits", "TRAINER.VPT.CTX_INIT", "")
    words = "zero one two three four five six seven eight nine".split()
    want = text_of(trainer, *(f"a photo of the digit {name}." for name in words))
    torch.testing.assert_close(trainer.model.text_features(), want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", ["IVLP", "AdvIVLP", "APD", "MaPLe", "AdvMaPLe"])
def test_deep_prompts_start_from_the_words_and_keep_those_left_over(build, tmp_path, method):
    trainer = build(method, tmp_path)
    first, second = trainer.model.prompt_learner.text_contexts()
    words = clip.tokenize("a photo of a")[0, 1:3]
    assert torch.equal(first, trainer.clip_model.token_embedding.weight[words])
    assert second.shape == first.shape and 0.01 < second.std() < 0.03


def test_text_prompts_train_on_a_resnet(run, tmp_path, tiny):
    for method in ("CoOp", "APT"):
        result = run(method, tmp_path / method, flags=("--backbone", tiny.resnet))
        assert (result.code, result.err) == (0, "")
        assert read_results(tmp_path / method)["modality"] == "text"


def test_text_chunks_change_memory_only(run, tmp_path):
    for chunk in (0, 2):
        run("AdvIVLP", tmp_path / f"{chunk}", "TRAINER.PROMPT.TEXT_CHUNK", chunk)
    whole, chunked = (
        torch.load(tmp_path / f"{chunk}/prompt_learner/model.pth.tar-2", weights_only=True)
        for chunk in (0, 2)
    )
    for name, value in whole["state_dict"].items():
        torch.testing.assert_close(chunked["state_dict"][name], value, rtol=0, atol=1e-5)
