"""ZeroshotCLIP's prompts: the dataset's template, one's own, ensembles."""

import clip
import pytest
import torch
from torch.nn.functional import normalize

NAMES = ("circle", "square", "star", "triangle")
COOPS = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)


def ensemble(trainer, templates):
    """CLIP's own features of whole sentences: unit length, averaged, unit length again."""
    total = 0
    with torch.no_grad():
        for template in templates:
            tokens = clip.tokenize([template.format(name) for name in NAMES])
            total = total + normalize(trainer.clip_model.encode_text(tokens), dim=-1)
    return normalize(total / len(templates), dim=-1)


def assert_prompts(trainer, templates):
    got, want = trainer.model.text_features(), ensemble(trainer, templates)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name, own", [("Folder", "a photo of a {}."), ("EuroSAT", None)])
def test_coops_ensemble_has_seven_templates_and_the_datasets_own(build, tmp_path, name, own):
    trainer = build("ZeroshotCLIP2", tmp_path)
    trainer.cfg.defrost()
    trainer.cfg.DATASET.NAME = name
    assert trainer.prompts()["templates"] == [*COOPS, own or "a centered satellite photo of {}."]
    if own:
        assert_prompts(trainer, [*COOPS, own])


def test_coops_ensemble_for_imagenet_is_the_seven_alone(build, tmp_path):
    trainer = build("ZeroshotCLIP2", tmp_path)
    trainer.cfg.defrost()
    trainer.cfg.DATASET.NAME = "ImageNet"
    assert trainer.prompts()["templates"] == list(COOPS)


@pytest.mark.parametrize("method", ["ZeroshotCLIP", "ZeroshotCLIP2"])
@pytest.mark.parametrize("templates", [["one {}"], ["a drawing of a {}.", "{}!", "my {} here"]])
def test_templates_of_ones_own(build, tmp_path, method, templates):
    trainer = build(method, tmp_path, "TRAINER.PROMPT.TEMPLATES", templates)
    assert_prompts(trainer, templates)


@pytest.mark.parametrize("template", ["no name", "{} and {}"])
def test_a_template_without_one_place_for_the_name_is_refused(run, tmp_path, template):
    result = run("ZeroshotCLIP", tmp_path / "out", "TRAINER.PROMPT.TEMPLATES", [template])
    assert result.code == 2 and result.err.count("\n") == 1
    assert f'"{template}" needs one {{}}' in result.err
