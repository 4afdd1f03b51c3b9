"""A classifier in other programs' formats: what they compute from it is what it computes."""

import copy
import json

import pytest
import torch
from torch import nn

import apd
from apd.clip import load_clip
from apd.errors import ImpossibleResult, UserError
from apd.export import FORMATS, Format, formats
from apd.export.command import main
from apd.export.formats import export
from apd.export.graph import ImagesToLogits
from apd.export.matrix import openclip_config

NAMES = ["circle", "square", "star", "triangle"]
KINDS = {  # a method of each kind of prompts
    "none": ("ZeroshotCLIP",),
    "text": ("CoOp",),
    "class-specific": ("CoOp", "TRAINER.COOP.CSC", True),
    "visual": ("VPT",),
    "text + visual": ("AdvIVLP",),
    "text-to-visual": ("MaPLe",),
    "visual-to-text": ("FAP",),
    "mixtures": ("MMoP",),
}
TEXT_ONLY = ("none", "text", "class-specific")
GRAPHS = ("text", "text-to-visual", "mixtures")  # those that differ: an export takes 5 seconds


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def classifier(kind, trained):
    return apd.load(trained(*KINDS[kind])[0])


@pytest.fixture
def resnet(tiny):
    return apd.zero_shot(tiny.resnet, NAMES)


def drawn(model, count, seed=7):
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, model.resolution, model.resolution, generator=draw)


def test_the_image_side_of_every_kind_gives_the_classifiers_logits(classifier):
    """It is what both exporters are given."""
    module, images = ImagesToLogits(classifier), drawn(classifier, 5)
    assert torch.allclose(module(images), classifier(images), atol=1e-5)
    assert not any(parameter.requires_grad for parameter in module.parameters())
    names = {name.removeprefix("model.") for name, _ in module.named_parameters()}
    assert all(name.startswith(("clip.visual.", "prompt_learner.visual.")) for name in names) or (
        classifier.description.method == "MMoP"
    )


def onnx_session(path):
    pytest.importorskip("onnx", reason="pip install 'apd-clip[onnx]'")
    pytest.importorskip("onnxscript", reason="pip install 'apd-clip[onnx]'")
    runtime = pytest.importorskip("onnxruntime", reason="pip install 'apd-clip[onnx]'")
    return lambda: runtime.InferenceSession(path, providers=["CPUExecutionProvider"])


def check_onnx(model, path):
    opened = onnx_session(path)
    export(model, path, "onnx")
    session = opened()
    (images,), (logits,) = session.get_inputs(), session.get_outputs()
    assert (images.name, images.shape[1:]) == ("images", [3, model.resolution, model.resolution])
    assert (logits.name, logits.shape[1:]) == ("logits", [len(model.class_names)])
    for count in (1, 2, 5):  # any batch, of one file
        batch = drawn(model, count)
        (found,) = session.run(None, {"images": batch.numpy()})
        assert (torch.from_numpy(found) - model(batch)).abs().max() < 1e-4
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["class_names"]) == model.class_names
    config = json.loads(about["config.json"])
    assert config["backbone"]["sha256"] == model.description.backbone.sha256


converts = pytest.mark.xfail(
    torch.__version__.startswith("2.6."), raises=UserError, reason="PyTorch 2.6 cannot"
)


@converts
@pytest.mark.parametrize("kind", GRAPHS, indirect=True)
def test_onnx(classifier, tmp_path):
    check_onnx(classifier, tmp_path / "a.onnx")


@converts
def test_onnx_of_a_resnet(resnet, tmp_path):
    check_onnx(resnet, tmp_path / "a.onnx")


def check_exported(model, path):
    export(model, path, "exported")
    extra = {"config.json": ""}
    program = torch.export.load(path, extra_files=extra)
    for count in (1, 2, 5):
        batch = drawn(model, count)
        assert (program.module()(batch) - model(batch)).abs().max() < 1e-4
    assert json.loads(extra["config.json"])["class_names"] == model.class_names


@pytest.mark.parametrize("kind", ["none", "visual-to-text"], indirect=True)
def test_exported(classifier, tmp_path):
    check_exported(classifier, tmp_path / "a.pt2")


def test_exported_of_a_resnet(resnet, tmp_path):
    check_exported(resnet, tmp_path / "a.pt2")


# -- a matrix, and a CLIP for OpenCLIP ----------------------------------------------------------


def features(clip_model, images):
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (clip_model.mean, clip_model.std))
    return nn.functional.normalize(clip_model.encode_image((images - mean) / std), dim=-1)


def matrix(path):
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        names = json.loads(file.metadata()["class_names"])
        return file.get_tensor("scale"), file.get_tensor("weight"), names


@torch.no_grad()
@pytest.mark.parametrize("kind", TEXT_ONLY, indirect=True)
@pytest.mark.parametrize("form", ["weights", "openclip"])
def test_prompts_without_visual_ones_are_a_matrix(classifier, tiny, tmp_path, form):
    path = tmp_path / f"a{FORMATS[form].suffix}"
    export(classifier, path, form)
    scale, weight, names = matrix(path / "classifier.safetensors" if form == "openclip" else path)
    assert names == classifier.class_names == NAMES and weight.shape == (4, 32)
    clip_model = load_clip(str(path) if form == "openclip" else tiny.clip)
    images = drawn(classifier, 5)
    logits = scale * features(clip_model, images) @ weight.t()
    assert (logits - classifier(images)).abs().max() < 1e-4


@torch.no_grad()
@pytest.mark.parametrize("backbone", ["vit", "resnet", "robust", "larger"])
def test_openclip_reads_the_folder(tiny, tmp_path, backbone):
    """The image encoder is the one that classifies, at its resolution, fine-tuned or not."""
    open_clip = pytest.importorskip("open_clip", reason="pip install 'apd-clip[openclip]'")
    robust = str(tmp_path / "robust.pt")
    weights = torch.load(tiny.clip, weights_only=True)
    torch.save({name: 0.9 * w for name, w in weights.items() if "visual" in name}, robust)
    more = {"robust": {"robust": robust}, "larger": {"resolution": 48}}.get(backbone, {})
    model = apd.zero_shot(tiny.resnet if backbone == "resnet" else tiny.clip, NAMES, **more)
    export(model, tmp_path / "a", "openclip")
    theirs, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'a'}")
    theirs.eval()
    scale, weight, _ = matrix(tmp_path / "a" / "classifier.safetensors")
    images = drawn(model, 3)
    normalise = preprocess.transforms[-1]
    found = scale * theirs.encode_image(normalise(images), normalize=True) @ weight.t()
    assert (found - model(images)).abs().max() < 1e-4
    tokens = open_clip.tokenize([f"a photo of a {name}." for name in NAMES])
    assert (theirs.encode_text(tokens, normalize=True) - weight).abs().max() < 1e-5


@pytest.mark.parametrize("form", ["weights", "openclip"])
@pytest.mark.parametrize("kind", sorted({*KINDS} - {*TEXT_ONLY}), indirect=True)
def test_visual_prompts_are_refused_where_they_have_no_place(classifier, tmp_path, form):
    method = classifier.description.method
    with pytest.raises(UserError, match=f"{method} prompts the image encoder too.*--format onnx"):
        export(classifier, tmp_path / f"a{FORMATS[form].suffix}", form)
    assert not any(tmp_path.iterdir())


def test_what_openclip_has_not_is_refused_by_name(tiny, tmp_path):
    model = apd.zero_shot(tiny.clip, NAMES)
    model.model.clip.ln_final.eps = 1e-6
    model.model.clip.visual.transformer.resblocks[0].mlp.gelu = nn.GELU()
    with pytest.raises(UserError, match="it has layer norms with eps 1e-06, activations other"):
        export(model, tmp_path / "a", "openclip")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("gelu", [True, False])
def test_the_activation_of_an_openclip_model_is_said(tiny, gelu):
    model = apd.zero_shot(tiny.clip, NAMES)
    clip_model = model.model.clip
    blocks = [*clip_model.transformer.resblocks, *clip_model.visual.transformer.resblocks]
    for block in blocks if gelu else ():
        block.mlp.gelu = nn.GELU()
    assert openclip_config(clip_model, model)["model_cfg"]["quick_gelu"] is not gelu


# -- what goes wrong ----------------------------------------------------------------------------


def test_logits_that_differ_are_not_written(tiny, tmp_path, monkeypatch):
    model = apd.zero_shot(tiny.clip, NAMES)
    monkeypatch.setitem(formats.FORMATS, "weights", Format("", __name__, "wrong"))
    with pytest.raises(ImpossibleResult, match="is not written: its logits are 1.0e-02 off"):
        export(model, tmp_path / "a", "weights")
    assert not any(tmp_path.iterdir())


def wrong(model, path):
    path.write_text("a file")
    return lambda images: model(images) + 0.01


def test_the_classifier_itself_stays_as_it_is(tiny, tmp_path):
    model = apd.zero_shot(tiny.clip, NAMES)
    before = copy.deepcopy(model.state_dict())
    for file, form in (("a.pt2", "exported"), ("a", "openclip")):
        export(model, tmp_path / file, form)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_rounded_weights_are_not_exported(tiny, tmp_path):
    with pytest.raises(UserError, match="the model is in torch.float16: load it again"):
        export(apd.zero_shot(tiny.clip, NAMES).half(), tmp_path / "a.safetensors", "weights")


def test_a_file_that_is_there_is_not_overwritten(tiny, tmp_path):
    for name, form in FORMATS.items():
        path = tmp_path / f"a{form.suffix}"
        path.write_text("mine")
        with pytest.raises(UserError, match=f"{path} exists: choose another name"):
            export(apd.zero_shot(tiny.clip, NAMES), path, name)
        assert path.read_text() == "mine"


@pytest.mark.parametrize("form", ["onnx", "exported", "weights"])
def test_readers_know_files_by_their_suffix(tiny, tmp_path, form):
    with pytest.raises(UserError, match=f"a.zip must end in {FORMATS[form].suffix}"):
        export(apd.zero_shot(tiny.clip, NAMES), tmp_path / "a.zip", form)


@pytest.mark.parametrize("missing", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_library_names_its_extra(tiny, tmp_path, monkeypatch, missing):
    import sys

    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UserError, match=r"pip install 'apd-clip\[onnx\]'"):
        export(apd.zero_shot(tiny.clip, NAMES), tmp_path / "a.onnx", "onnx")


def test_an_onnx_file_of_more_than_it_can_hold_is_refused(tiny, tmp_path, monkeypatch):
    pytest.importorskip("onnxscript", reason="pip install 'apd-clip[onnx]'")
    monkeypatch.setattr("apd.export.graph._ONNX_BYTES", 1000)
    with pytest.raises(UserError, match="an ONNX file holds 2 GB.*--format exported"):
        export(apd.zero_shot(tiny.clip, NAMES), tmp_path / "a.onnx", "onnx")


def test_the_command(trained, tmp_path, capsys):
    folder = str(trained("CoOp")[0])
    path, other = tmp_path / "new" / "a.safetensors", str(tmp_path / "b.safetensors")
    assert main([folder, str(path), "--format", "weights"]) == 0
    assert "its logits are within" in capsys.readouterr().out
    assert matrix(path)[2] == NAMES
    assert main([folder, other, "--format", "weights", "--classes", "cat,dog"]) == 0
    assert matrix(other)[2] == ["cat", "dog"]
    assert main([folder, str(tmp_path / "c"), "--format", "weights", "--epoch", "7"]) == 2
    assert main([str(tmp_path), str(tmp_path / "b"), "--format", "onnx"]) == 2
    assert main([folder, str(tmp_path / "b"), "--format", "tflite"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and all(line.startswith("error: ") for line in lines)
