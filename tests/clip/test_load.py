"""Loading CLIP: which files and names, and what the user hears about the others."""

import copy
import os
from urllib.error import URLError

import clip
import pytest
import torch
from clip.model import convert_weights

from apd.clip import backbone_sha256, build_prompted_clip, load_clip
from apd.clip.load import SHIPPED
from apd.errors import UserError


def half(model):
    model = copy.deepcopy(model)
    convert_weights(model)
    return model


def assert_ready(model):
    """Frozen, in eval mode and float32."""
    assert not model.training
    assert not any(weight.requires_grad for weight in model.parameters())
    tensors = [t for t in model.state_dict().values() if t.is_floating_point()]
    assert {t.dtype for t in tensors} == {torch.float32}


def assert_weights(model, want):
    got = model.state_dict()
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert torch.equal(got[name], value.float() if value.is_floating_point() else value), name


@pytest.fixture(params=["vit", "resnet"])
def backbone(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("wrapped", [False, True], ids=["bare", "state_dict"])
def test_a_half_precision_state_dict(backbone, tmp_path, wrapped):
    want = half(backbone).state_dict()
    torch.save({"state_dict": want, "epoch": 3} if wrapped else want, tmp_path / "clip.pt")
    model = load_clip(str(tmp_path / "clip.pt"))
    assert_ready(model)
    assert_weights(model, want)


@pytest.mark.parametrize("wrapped", [False, True], ids=["bare", "state_dict"])
def test_a_float32_state_dict_is_not_rounded(backbone, tmp_path, wrapped):
    want = backbone.state_dict()
    torch.save({"state_dict": want} if wrapped else want, tmp_path / "clip.pt")
    model = load_clip(str(tmp_path / "clip.pt"))
    assert_ready(model)
    assert_weights(model, want)


def test_what_a_state_dict_does_not_say_is_said(vit, tmp_path, capsys):
    torch.save(vit.state_dict(), tmp_path / "clip.pt")
    load_clip(str(tmp_path / "clip.pt"))
    (line,) = capsys.readouterr().out.splitlines()
    assert (
        "clip.pt does not say all of its design and is read as OpenAI's are: QuickGELU, a" in line
    )
    load_clip("mini")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["mini", "mini-photo"])
def test_a_small_clip_comes_with_the_package(name):
    assert SHIPPED[name].stat().st_size <= 10e6
    model = load_clip(name)
    assert_ready(model)
    assert model.visual.input_resolution == 32
    digits = build_prompted_clip(model, ["zero", "one"], n_ctx_text=2, n_ctx_visual=2)
    assert digits(torch.rand(3, 3, 32, 32)).shape == (3, 2)


def test_an_openai_name_is_downloaded_to_clips_own_cache(vit, tmp_path, monkeypatch):
    want = half(vit).state_dict()
    calls = []

    def download(url, root):
        calls.append((url.rsplit("/")[-1], root))
        torch.save(want, tmp_path / "ViT-B-32.pt")
        return str(tmp_path / "ViT-B-32.pt")

    monkeypatch.setattr(clip.clip, "_download", download)
    model = load_clip("ViT-B/32")
    assert_ready(model)
    assert_weights(model, want)
    assert calls == [("ViT-B-32.pt", os.path.expanduser("~/.cache/clip"))]


@pytest.mark.parametrize("error", [URLError("no route to host"), RuntimeError("bad checksum")])
def test_a_failed_download_says_what_to_do(monkeypatch, error):
    def download(url, root):
        raise error

    monkeypatch.setattr(clip.clip, "_download", download)
    with pytest.raises(UserError, match="ViT-B/16 could not be downloaded.*local .pt file"):
        load_clip("ViT-B/16")


def test_a_maple_checkouts_clip_is_asked_for_the_plain_model(vit, tmp_path, monkeypatch):
    asked = []

    def build_model(state_dict, design_details):  # as in its clip/model.py
        asked.append(design_details)
        return clip.model.build_model(state_dict)

    monkeypatch.setattr("apd.clip.load.build_model", build_model)
    torch.save(vit.state_dict(), tmp_path / "clip.pt")
    assert_ready(load_clip(str(tmp_path / "clip.pt")))
    (details,) = asked
    assert details.pop("trainer") == "CoOp"
    assert set(details.values()) == {0}


@pytest.mark.parametrize(
    ("name", "near"),
    [("ViT-B32", "ViT-B/32"), ("ViT-B/8", "ViT-B/16"), ("minni", "mini"), ("RN-50", "RN50")],
)
def test_an_unknown_name_lists_the_nearest(name, near):
    with pytest.raises(UserError, match="no CLIP named") as error:
        load_clip(name)
    assert name in str(error.value)
    named = str(error.value).split("one of ")[1].split(", ")
    assert near in named
    assert len(named) <= 3


def test_a_name_like_no_other_lists_them_all():
    with pytest.raises(UserError) as error:
        load_clip("/no/such/folder/0123456789.pt")
    assert all(name in str(error.value) for name in ["mini", *clip.available_models()])


def test_a_truncated_file_says_so(vit, tmp_path):
    path = tmp_path / "clip.pt"
    torch.save(half(vit).state_dict(), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match="clip.pt .*damaged"):
        load_clip(str(path))


@pytest.mark.parametrize("content", [b"", b"no weights at all"], ids=["empty", "text"])
def test_a_file_that_is_no_archive_says_so(tmp_path, content):
    path = tmp_path / "clip.pt"
    path.write_bytes(content)
    with pytest.raises(UserError, match="clip.pt is neither"):
        load_clip(str(path))


def without(weights, name):
    return {key: value for key, value in weights.items() if key != name}


def custom_text(weights):
    """As OpenCLIP's CustomTextCLIP names them."""
    return {
        name if name.startswith("visual.") or name == "logit_scale" else f"text.{name}": value
        for name, value in weights.items()
    }


@pytest.mark.parametrize(
    "change, why",
    [
        (lambda clip: without(clip.state_dict(), "visual.proj"), "it lacks visual.proj$"),
        (lambda clip: custom_text(clip.state_dict()), "CustomTextCLIP of OpenCLIP .its text enc"),
        (lambda clip: clip, "holds a pickled CLIP, and no object's code is run .*state_dict"),
        (lambda clip: {"model": clip, "epoch": 3}, "holds a pickled CLIP"),
    ],
    ids=["no-projection", "custom-text", "module", "wrapped-module"],
)
def test_a_refusal_names_its_reason(vit, tmp_path, change, why):
    torch.save(change(vit), tmp_path / "clip.pt")
    with pytest.raises(UserError, match=why):
        load_clip(str(tmp_path / "clip.pt"))


def test_a_pickled_image_encoder_is_refused_as_one(vit, tmp_path):
    torch.save({"vision_encoder_state_dict": vit.visual}, tmp_path / "robust.pt")
    with pytest.raises(UserError, match="robust.pt holds a pickled VisionTransformer"):
        load_clip("mini", str(tmp_path / "robust.pt"))


@pytest.mark.parametrize(
    "change",
    {
        "other-network": lambda clip: {"conv1.weight": torch.zeros(3), "fc.bias": torch.zeros(3)},
        "empty": lambda clip: {},
        "no-dict": lambda clip: [torch.zeros(3)],
        "tensor": lambda clip: torch.zeros(3),
        "inner-list": lambda clip: {"state_dict": [torch.zeros(3)]},
        "missing": lambda clip: without(clip, "ln_final.bias"),
        "extra": lambda clip: {**clip, "head.weight": torch.zeros(3)},
        "prefixed": lambda clip: {f"backbone.{name}": weight for name, weight in clip.items()},
        "wrong-shape": lambda clip: {**clip, "text_projection": torch.zeros(3)},
        "narrow": lambda clip: {**clip, "ln_final.weight": torch.zeros(32)},
    }.items(),
    ids=lambda change: change[0],
)
def test_weights_of_something_else_are_refused(vit, tmp_path, change):
    path = tmp_path / "clip.pt"
    torch.save(change[1](half(vit).state_dict()), path)
    with pytest.raises(UserError, match="clip.pt does not hold the weights of a CLIP"):
        load_clip(str(path))


# -- robust image encoders --------------------------------------------------------------------


def fine_tuned(backbone):
    """Other weights of the same architecture."""
    draw = torch.Generator().manual_seed(5)
    return {
        name: value + torch.randn(value.shape, generator=draw)
        if value.is_floating_point()
        else value
        for name, value in backbone.visual.state_dict().items()
    }


LAYOUTS = {
    # what finetuning.py of TeCoA saves
    "tecoa": lambda visual: {
        "epoch": 10,
        "state_dict": {},
        "add_prompter": {},
        "vision_encoder_state_dict": visual,
        "best_acc1": torch.tensor(40.0),
        "optimizer": {"state": {}, "param_groups": []},
    },
    "fare": dict,
    "parallel": lambda visual: {f"module.{name}": value for name, value in visual.items()},
    "open_clip": lambda visual: {
        "logit_scale": torch.tensor(4.6),
        "positional_embedding": torch.zeros(77, 64),
        **{f"visual.{name}": value for name, value in visual.items()},
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_robust_image_encoder_replaces_clips_own(backbone, tmp_path, layout, dtype):
    torch.save(backbone.state_dict(), tmp_path / "clip.pt")
    visual = {
        k: v.to(dtype) if v.is_floating_point() else v for k, v in fine_tuned(backbone).items()
    }
    torch.save(LAYOUTS[layout](visual), tmp_path / "robust.pt")
    model = load_clip(str(tmp_path / "clip.pt"), str(tmp_path / "robust.pt"))
    assert_ready(model)
    want = backbone.state_dict() | {f"visual.{name}": value for name, value in visual.items()}
    assert_weights(model, want)


def test_a_robust_image_encoder_in_safetensors(vit, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    torch.save(vit.state_dict(), tmp_path / "clip.pt")
    visual = fine_tuned(vit)
    whole = {"logit_scale": torch.tensor(4.6), **{f"visual.{k}": v for k, v in visual.items()}}
    safetensors.save_file(whole, tmp_path / "open_clip_model.safetensors")
    model = load_clip(str(tmp_path / "clip.pt"), str(tmp_path / "open_clip_model.safetensors"))
    assert torch.equal(model.visual.proj, visual["proj"])


def test_old_robust_resnets_count_no_batches(resnet, tmp_path):
    torch.save(resnet.state_dict(), tmp_path / "clip.pt")
    visual = {k: v for k, v in fine_tuned(resnet).items() if not k.endswith("num_batches_tracked")}
    assert len(visual) < len(resnet.visual.state_dict())
    torch.save({"vision_encoder_state_dict": visual}, tmp_path / "robust.pt")
    model = load_clip(str(tmp_path / "clip.pt"), str(tmp_path / "robust.pt"))
    assert torch.equal(model.visual.conv1.weight, visual["conv1.weight"])


def test_a_robust_encoder_that_does_not_fit_is_told_in_one_line(vit, tmp_path):
    torch.save(vit.state_dict(), tmp_path / "clip.pt")
    visual = fine_tuned(vit)
    visual["prompt_pos_embedding"] = torch.zeros(2, 128)
    del visual["ln_pre.bias"], visual["proj"]
    visual["class_embedding"] = torch.zeros(256)
    torch.save({"vision_encoder_state_dict": visual}, tmp_path / "robust.pt")
    with pytest.raises(UserError) as error:
        load_clip(str(tmp_path / "clip.pt"), str(tmp_path / "robust.pt"))
    message = str(error.value)
    assert "\n" not in message and message.startswith(f"{tmp_path / 'robust.pt'} does not fit")
    assert "missing: ln_pre.bias, proj;" in message
    assert "unexpected: prompt_pos_embedding;" in message
    assert "of another shape: class_embedding ((256,), not (128,))" in message


def test_a_robust_encoder_of_another_architecture_lists_a_few_keys(vit, resnet, tmp_path):
    torch.save(vit.state_dict(), tmp_path / "clip.pt")
    torch.save(resnet.visual.state_dict(), tmp_path / "robust.pt")
    with pytest.raises(UserError, match=r"missing: class_embedding, .* and \d+ more; unexpected"):
        load_clip(str(tmp_path / "clip.pt"), str(tmp_path / "robust.pt"))


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None])
def test_an_unreadable_robust_encoder_is_named(vit, tmp_path, content):
    torch.save(vit.state_dict(), tmp_path / "clip.pt")
    if content is not None:
        (tmp_path / "robust.pt").write_bytes(content)
    with pytest.raises(UserError, match="robust.pt"):
        load_clip(str(tmp_path / "clip.pt"), str(tmp_path / "robust.pt"))


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, torch.zeros(3)])
def test_a_file_of_something_else_is_no_robust_encoder(vit, tmp_path, content):
    torch.save(vit.state_dict(), tmp_path / "clip.pt")
    torch.save(content, tmp_path / "robust.pt")
    with pytest.raises(UserError, match="does not fit"):
        load_clip(str(tmp_path / "clip.pt"), str(tmp_path / "robust.pt"))


def module(weights):
    return {f"module.{name}": value for name, value in weights.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda weights: {"model": weights},
        lambda weights: {"epoch": 3, "state_dict": module(weights), "args": object()},
        lambda weights: module(weights),
        lambda weights: {f"_orig_mod.module.{name}": value for name, value in weights.items()},
        lambda weights: {"model": {"state_dict": weights}},
    ],
)
def test_what_is_only_wrapped_is_unwrapped(vit, tmp_path, wrap):
    weights = vit.state_dict()
    torch.save(wrap(weights), tmp_path / "clip.pt")
    loaded = load_clip(str(tmp_path / "clip.pt")).state_dict()
    assert all(torch.equal(loaded[name], value.float()) for name, value in weights.items())


def test_another_family_is_refused_by_its_own_names(tmp_path):
    torch.save({"text_model.x": torch.ones(1), "vision_model.y": torch.ones(1)}, tmp_path / "a.pt")
    with pytest.raises(UserError, match="it has text_model.x, vision_model.y, where OpenAI's CLIP"):
        load_clip(str(tmp_path / "a.pt"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(vit, tmp_path, value):
    weights = {name: tensor.clone() for name, tensor in vit.state_dict().items()}
    weights["visual.proj"][0, 0] = value
    torch.save(weights, tmp_path / "clip.pt")
    with pytest.raises(UserError, match="clip.pt has NaN or infinite weights .visual.proj."):
        load_clip(str(tmp_path / "clip.pt"))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_weights_in_float8_are_read(vit, tmp_path, dtype):
    weights = {name: value.to(dtype) for name, value in vit.state_dict().items()}
    torch.save(weights, tmp_path / "clip.pt")
    loaded = load_clip(str(tmp_path / "clip.pt")).state_dict()
    assert all(torch.equal(loaded[name], value.float()) for name, value in weights.items())
    weights["visual.proj"] = torch.full((128, 32), float("nan")).to(dtype)
    torch.save(weights, tmp_path / "clip.pt")
    with pytest.raises(UserError, match="NaN or infinite weights .visual.proj."):
        load_clip(str(tmp_path / "clip.pt"))


def test_the_hash_is_that_of_what_the_model_computes_with(vit, resnet, tmp_path):
    torch.save(vit.state_dict(), tmp_path / "a.pt")
    torch.save({"state_dict": half(vit).state_dict()}, tmp_path / "b.pt")
    first, again, rounded = (
        backbone_sha256(load_clip(str(tmp_path / name))) for name in ("a.pt", "a.pt", "b.pt")
    )
    assert first == again != rounded  # half precision has rounded the weights
    model = load_clip(str(tmp_path / "a.pt"))
    model.visual.transformer.resblocks[1].mlp.gelu = torch.nn.GELU()
    assert backbone_sha256(model) != first
    model = load_clip(str(tmp_path / "a.pt"))
    model.mean = (0.5, 0.5, 0.5)
    assert backbone_sha256(model) != first
    torch.save(resnet.state_dict(), tmp_path / "c.pt")
    assert len(backbone_sha256(load_clip(str(tmp_path / "c.pt")))) == 64
