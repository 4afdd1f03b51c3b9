"""The module that ``apd.load`` gives: as any other of PyTorch, with its text computed once."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

import apd
from apd.errors import UserError

NAMES = ["circle", "square", "star", "triangle"]


def refused(call, *said):
    with pytest.raises(UserError) as error:
        call()
    assert "\n" not in str(error.value)
    assert all(part in str(error.value) for part in said), str(error.value)


def test_text_features_are_computed_once(model, images, monkeypatch):
    calls = []
    monkeypatch.setattr(type(model.model), "encode_classes", lambda *_: calls.append(1))
    model(images)
    features = model.text_features()
    assert not calls and features.shape == (4, 32)
    assert torch.allclose(features.norm(dim=1), torch.ones(4))


def test_gradients_reach_the_images_only(model, images):
    images = images.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(model(images).sum(), images)
    assert gradient.abs().max() > 0
    assert not any(p.requires_grad for p in model.parameters())


def test_a_module_made_without_gradients_has_them_later(folder, images):
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        model = apd.load(folder)
    assert torch.equal(model.text_features(), apd.load(folder).text_features())
    model(images.clone().requires_grad_(True)).sum().backward()


def test_no_grad_autocast_and_half(model, images):
    expected = model(images)
    with torch.no_grad():
        assert torch.equal(model(images), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        close = model(images)
    assert close.dtype == torch.float32 and not torch.equal(close, expected)
    assert torch.allclose(close, expected, atol=0.3)
    half = copy.deepcopy(model).half()
    assert half.text_features().dtype == half(images.half()).dtype == torch.float16
    assert torch.allclose(half(images).float(), expected, atol=0.3)
    assert half.classes(["a", "b"])(images.half()).dtype == torch.float16
    assert torch.equal(model.double().float()(images), expected)


def test_compiled(model, images):
    if not torch._dynamo.is_dynamo_supported():
        pytest.skip("no torch.compile here")
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert torch.allclose(compiled(images), model(images), atol=1e-5)


def test_a_copy_is_independent(model, images):
    copied, expected = copy.deepcopy(model), model(images)
    assert torch.equal(copied(images), expected)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    copied.text.zero_()
    assert torch.equal(model(images), expected)


def test_pickle_is_refused_with_a_word_about_save(model):
    refused(lambda: pickle.dumps(model), "model.save(folder)")
    refused(lambda: torch.save(model, io.BytesIO()), "model.save(folder)")


def test_a_loaded_state_dict_has_its_own_text_features(model, images):
    other = copy.deepcopy(model)
    state = {k: v + 0.1 if "prompt_learner" in k else v for k, v in model.state_dict().items()}
    other.load_state_dict(state)
    assert not torch.equal(other.text_features(), model.text_features())
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(images), model(images))


def test_preprocess_equals_the_evaluations_own(model, labelled, tiny):
    paths = [f"{tiny.root}/shapes/test/{name}/{i}.png" for name in NAMES for i in range(5)]
    made = torch.stack([model.preprocess(Image.open(path)) for path in paths])
    assert torch.equal(made, labelled[0])
    large = Image.fromarray(np.full((50, 90, 4), 200, np.uint8))
    assert model.preprocess(large).shape == (3, 32, 32)
    refused(lambda: model.preprocess(Image.new("I;16", (40, 40))), "more than 8 bits")


def test_predict(model, labelled, tiny):
    path = f"{tiny.root}/shapes/test/star/1.png"
    images = [path, Image.open(path), model.preprocess(Image.open(path))]
    found = model.predict(images, top=2)
    assert found[0].label == found[1].label == found[2].label and len(found[0].top) == 2
    best = found[0]
    assert (best.label, best.probability) == best.top[0] and best.top[0][1] >= best.top[1][1]
    with torch.no_grad():
        probabilities = model(labelled[0]).softmax(dim=1)
    for batch_size in (3, 64):
        every = model.predict(labelled[0], batch_size=batch_size)
        assert [one.label for one in every] == [NAMES[c] for c in probabilities.argmax(dim=1)]
        shares = torch.tensor([[dict(one.top)[name] for name in NAMES] for one in every])
        assert torch.allclose(shares, probabilities, atol=1e-5)
    assert model.predict(path, top=2) == model.predict(images[2], top=2)


def test_bad_images_are_told(model, tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG no")
    refused(lambda: model.predict(tmp_path / "a.png"), "cannot read image", "a.png")
    refused(lambda: model.predict(tmp_path / "none.png"), "none.png", "No such file")
    refused(lambda: model.predict(torch.full((3, 32, 32), 200.0)), "from 200 to 200", "[0, 1]")
    refused(lambda: model.predict(torch.full((3, 32, 32), torch.nan)), "[0, 1]")
    refused(lambda: model.predict([np.zeros((32, 32, 3))]), "ndarray")
    refused(lambda: model.predict(torch.zeros(3, 30, 32)), "(1, 3, 30, 32)", "(B, 3, 32, 32)")
    refused(lambda: model(torch.zeros(3, 32, 32)), "(3, 32, 32)")
    refused(lambda: model(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)), "torch.uint8")


def test_other_class_names(model, trained, folder, images):
    """The same prompts: what the trainer computes with these names, and a load with them."""
    names = ["a long name of a class", "cat"]
    other = model.classes(names)
    assert other.class_names == names and other(images).shape == (5, 2)
    assert torch.equal(other(images), apd.load(folder, classes=names)(images))
    assert other.results == {} != model.results
    assert torch.equal(other.classes(NAMES)(images), model(images))
    one = model.classes(["star"])
    assert torch.allclose(one.text_features(), model.text_features()[2:3], atol=1e-6)


def test_class_names_that_are_none(model):
    for names in ([], "cat", ["cat", ""], ["cat", 3], ["cat", "cat"]):
        refused(lambda: model.classes(names), "class names")


def test_class_specific_prompts_refuse_other_class_names(trained, images):
    folder, _ = trained("CoOp", "TRAINER.COOP.CSC", True)
    model = apd.load(folder)
    assert torch.equal(model.classes(NAMES)(images), model(images))
    for names in (["cat", "dog"], NAMES[::-1]):
        refused(lambda: model.classes(names), "class-specific", "circle")
        refused(lambda: apd.load(folder, classes=names), "class-specific", "circle")


def test_zero_shot(trained, tiny, images):
    """It is the trainer ZeroshotCLIP, and with several templates the ensemble."""
    for method, templates in (
        ("ZeroshotCLIP", None),
        ("ZeroshotCLIP2", trained("ZeroshotCLIP2")[1].prompts()["templates"]),
    ):
        trainer = trained(method)[1]
        model = apd.zero_shot(tiny.clip, NAMES, templates)
        assert torch.equal(model(images), trainer.image_logits()(images))
    again = model.classes(NAMES, templates=["a photo of a {}."])
    assert torch.equal(again(images), apd.zero_shot(tiny.clip, NAMES)(images))
    assert model.threat_model == {"train": None, "test": None} and model.results == {}
    refused(lambda: apd.zero_shot(tiny.clip, NAMES, "a photo"), "{}")
    refused(lambda: apd.zero_shot("ViT-B/33", NAMES), "ViT-B/32")


def test_templates_do_not_replace_learned_context(model):
    refused(lambda: model.classes(NAMES, templates=["a {}."]), "learned")


def test_tensors_of_other_shapes_and_kinds_are_told_whichever_place_they_have(model):
    good = torch.rand(3, 32, 32)
    for bad in (torch.rand(3, 64, 64), torch.rand(1, 32, 32), torch.rand(32), good.bool()):
        refused(lambda: model.predict([good, bad]), "the model reads (B, 3, 32, 32)")
    refused(lambda: model.predict(torch.zeros(3, 0, 0)), "(1, 3, 0, 0)")
    both = model.predict([good, good.double().requires_grad_()])
    assert both[0].label == both[1].label


def test_numbers_below_one_are_refused(model):
    for name, number in (("top", 0), ("top", -1), ("batch_size", 0), ("batch_size", -1)):
        refused(lambda: model.predict(torch.rand(3, 32, 32), **{name: number}), f"{name} is")


def test_one_template_may_be_a_text(tiny, images):
    model = apd.zero_shot(tiny.clip, NAMES).classes(NAMES, templates="one {}.")
    assert torch.equal(model(images), apd.zero_shot(tiny.clip, NAMES, "one {}.")(images))


def test_names_that_clip_reads_alike_are_told(model, folder, tiny):
    for make in (
        lambda names: model.classes(names),
        lambda names: apd.load(folder, classes=names),
        lambda names: apd.zero_shot(tiny.clip, names),
    ):
        with pytest.warns(UserWarning, match="share a prompt: 'Cat' = 'cat'"):
            make(["Cat", "dog", "cat"])
