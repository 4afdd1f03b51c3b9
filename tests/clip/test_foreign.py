"""CLIPs of OpenCLIP and of transformers: from made files, and against the libraries themselves.

The latter need open_clip_torch and transformers, which the tests do not install.
"""

import json
import sys
from types import SimpleNamespace

import clip
import pytest
import torch
from clip.model import QuickGELU
from torch import nn

from apd.clip import build_prompted_clip, load_clip
from apd.clip.foreign import MEAN, STD
from apd.clip.text import tokenizer
from apd.errors import UserError

IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def tokens():
    """(2, 77), of one short and one longer text."""
    rows = torch.zeros(2, 77, dtype=torch.long)
    for row, text in zip(rows, ("a photo of a cat.", "two brown dogs, asleep in the shade")):
        ids = [49406, *tokenizer().encode(text), 49407]
        row[: len(ids)] = torch.tensor(ids)
    return rows


def activations(encoder):
    return {type(block.mlp.gelu) for block in encoder.transformer.resblocks}


def same_weights(model, want):
    got = model.state_dict()
    assert got.keys() == want.keys()
    return all(torch.equal(got[name], want[name]) for name in want)


# -- made files -------------------------------------------------------------------------------

CONFIG = {
    "model_type": "clip",
    "projection_dim": 32,
    "text_config": {
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_attention_heads": 2,
        "num_hidden_layers": 3,
        "vocab_size": 49408,
        "hidden_act": "gelu",
    },
    "vision_config": {
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "image_size": 32,
        "patch_size": 8,
        "layer_norm_eps": 1e-6,
    },
}
PIXELS = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.1]}


def huggingface(weights):
    """A state dict of ``clip.model.CLIP`` under the names that transformers has."""
    found = {
        "logit_scale": weights["logit_scale"],
        "text_projection.weight": weights["text_projection"].t(),
        "visual_projection.weight": weights["visual.proj"].t(),
        "text_model.embeddings.position_ids": torch.arange(77)[None],
        "text_model.embeddings.token_embedding.weight": weights["token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": weights["positional_embedding"],
        "vision_model.embeddings.class_embedding": weights["visual.class_embedding"],
        "vision_model.embeddings.patch_embedding.weight": weights["visual.conv1.weight"],
        "vision_model.embeddings.position_embedding.weight": weights["visual.positional_embedding"],
    }
    norms = {
        "text_model.final_layer_norm": "ln_final",
        "vision_model.pre_layrnorm": "visual.ln_pre",
        "vision_model.post_layernorm": "visual.ln_post",
    }
    for model, prefix in (("text_model", ""), ("vision_model", "visual.")):
        for i in range(3):
            theirs, ours = f"{model}.encoder.layers.{i}", f"{prefix}transformer.resblocks.{i}"
            norms |= {f"{theirs}.layer_norm{n}": f"{ours}.ln_{n}" for n in (1, 2)}
            norms |= {
                f"{theirs}.mlp.fc1": f"{ours}.mlp.c_fc",
                f"{theirs}.mlp.fc2": f"{ours}.mlp.c_proj",
                f"{theirs}.self_attn.out_proj": f"{ours}.attn.out_proj",
            }
            for kind in ("weight", "bias"):
                parts = weights[f"{ours}.attn.in_proj_{kind}"].chunk(3)
                for letter, part in zip("qkv", parts):
                    found[f"{theirs}.self_attn.{letter}_proj.{kind}"] = part
    for theirs, ours in norms.items():
        for kind in ("weight", "bias"):
            found[f"{theirs}.{kind}"] = weights[f"{ours}.{kind}"]
    return {name: weight.contiguous() for name, weight in found.items()}


def save(weights, path):
    if path.suffix == ".safetensors":
        safetensors = pytest.importorskip("safetensors.torch")
        safetensors.save_file(weights, path)
    else:
        torch.save(weights, path)


def shard(weights, folder, stem, suffix):
    """Two files and their index, as transformers saves large models."""
    names = sorted(weights)
    files = [f"{stem}-0000{i}-of-00002{suffix}" for i in (1, 2)]
    halves = dict(zip(files, (names[::2], names[1::2])))
    for file, half in halves.items():
        save({name: weights[name] for name in half}, folder / file)
    index = {"weight_map": {name: file for file, half in halves.items() for name in half}}
    (folder / f"{stem}{suffix}.index.json").write_text(json.dumps(index))


def folder_of(path, weights, config=CONFIG, file="pytorch_model.bin", pixels=PIXELS):
    path.mkdir()
    save(weights, path / file)
    (path / "config.json").write_text(json.dumps(config))
    (path / "preprocessor_config.json").write_text(json.dumps(pixels))
    return str(path)


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.safetensors"])
def test_a_transformers_folder(vit, tmp_path, file):
    model = load_clip(folder_of(tmp_path / "hf", huggingface(vit.state_dict()), file=file))
    assert same_weights(model, vit.state_dict())
    assert activations(model) == {nn.GELU} and activations(model.visual) == {QuickGELU}
    assert {block.attn.num_heads for block in model.transformer.resblocks} == {2}
    assert {block.attn.num_heads for block in model.visual.transformer.resblocks} == {4}
    assert (model.visual.ln_post.eps, model.ln_final.eps) == (1e-6, 1e-5)
    assert (model.mean, model.std) == ((0.5, 0.4, 0.3), (0.2, 0.2, 0.1))


@pytest.mark.parametrize(
    "stem, suffix", [("pytorch_model", ".bin"), ("model", ".safetensors")], ids=["bin", "safe"]
)
def test_a_transformers_folder_in_shards(vit, tmp_path, stem, suffix):
    shard(huggingface(vit.state_dict()), tmp_path, stem, suffix)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    model = load_clip(str(tmp_path))
    assert same_weights(model, vit.state_dict())
    assert (model.mean, model.std) == (MEAN, STD)  # where there is no preprocessor_config.json


@pytest.mark.parametrize(
    "files, want",
    [
        ({"processor_config.json": {"image_processor": PIXELS}}, PIXELS),  # transformers 5
        (
            {
                "processor_config.json": {"image_processor": PIXELS},
                "preprocessor_config.json": {"image_mean": [0, 0, 0], "image_std": [1, 1, 1]},
            },
            PIXELS,
        ),
        (  # transformers 4 wrote both, of which the former said little
            {
                "processor_config.json": {"processor_class": "CLIP"},
                "preprocessor_config.json": PIXELS,
            },
            PIXELS,
        ),
        (
            {"preprocessor_config.json": {**PIXELS, "do_normalize": False}},
            {"image_mean": [0, 0, 0], "image_std": [1, 1, 1]},
        ),
        ({}, None),
        ({"processor_config.json": {"processor_class": "CLIPProcessor"}}, None),
    ],
    ids=["nested", "both", "old-both", "no-normalisation", "none", "nothing-in-it"],
)
@pytest.mark.parametrize("place", ["folder", "hub"])
def test_mean_and_std_are_where_transformers_has_them(
    vit, tmp_path, monkeypatch, capsys, files, want, place
):
    name = folder_of(tmp_path / "hf", huggingface(vit.state_dict()))
    (tmp_path / "hf" / "preprocessor_config.json").unlink()
    for file, content in files.items():
        (tmp_path / "hf" / file).write_text(json.dumps(content))
    if place == "hub":
        client = hub(tmp_path / "hf")
        monkeypatch.setitem(sys.modules, "huggingface_hub", client)
        name = "hf:someone/clip"
    model = load_clip(name)
    if place == "hub":
        assert {*client.downloads} == {"config.json", "pytorch_model.bin", *files}
    note = f"note: {name} does not say the mean and std of its pixels: OpenAI's are taken"
    assert (note in capsys.readouterr().out) == (want is None)
    mean, std = (want["image_mean"], want["image_std"]) if want else (MEAN, STD)
    assert (model.mean, model.std) == (tuple(mean), tuple(std))


@pytest.mark.parametrize("change", [{"do_rescale": False}, {"rescale_factor": 1 / 127.5}])
def test_pixels_of_another_range_are_refused(vit, tmp_path, change):
    name = folder_of(tmp_path / "hf", huggingface(vit.state_dict()), pixels={**PIXELS, **change})
    with pytest.raises(UserError, match="it has pixels that are not scaled to .0, 1."):
        load_clip(name)


def test_another_filter_of_resizing_is_said(vit, tmp_path, capsys):
    pixels = {**PIXELS, "resample": 2}
    load_clip(folder_of(tmp_path / "hf", huggingface(vit.state_dict()), pixels=pixels))
    assert "was trained on images resized by bilinear" in capsys.readouterr().out


OPENCLIP = {
    "model_cfg": {
        "embed_dim": 32,
        "vision_cfg": {
            "image_size": 32,
            "layers": 3,
            "width": 128,
            "patch_size": 8,
            "head_width": 32,
            "patch_dropout": 0.5,
        },
        "text_cfg": {
            "context_length": 77,
            "vocab_size": 49408,
            "width": 64,
            "heads": 2,
            "layers": 3,
            "hf_tokenizer_name": "openai/clip-vit-base-patch32",
        },
    },
    "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
}


@pytest.mark.parametrize("file", ["open_clip_pytorch_model.bin", "open_clip_model.safetensors"])
@pytest.mark.parametrize("quick", [True, False])
def test_an_openclip_folder(vit, tmp_path, file, quick):
    save(vit.state_dict(), tmp_path / file)
    settings = {**OPENCLIP, "model_cfg": {**OPENCLIP["model_cfg"], "quick_gelu": quick}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(settings))
    model = load_clip(str(tmp_path))
    assert same_weights(model, vit.state_dict())
    assert activations(model) == activations(model.visual) == {QuickGELU if quick else nn.GELU}
    assert {block.attn.num_heads for block in model.visual.transformer.resblocks} == {4}
    assert model.mean == model.std == (0.5, 0.5, 0.5)


class OpenCLIP(SimpleNamespace):
    """What ``find_foreign`` asks the library for, with one model of one tag."""

    def __init__(self, file):
        super().__init__(
            get_model_config=lambda name: OPENCLIP["model_cfg"] if name == "ViT-S" else None,
            list_models=lambda: ["ViT-S", "ViT-L"],
            get_pretrained_cfg=lambda model, tag: {"quick_gelu": True} if tag == "web" else {},
            list_pretrained_tags_by_model=lambda model: ["web"],
            download_pretrained=lambda settings: file,
        )


@pytest.mark.parametrize("wrapped", [False, True], ids=["tag", "training-checkpoint"])
def test_an_openclip_name(vit, tmp_path, monkeypatch, wrapped):
    """A tag says itself whether it is QuickGELU; of a file the model's config says it."""
    weights, path = vit.state_dict(), tmp_path / "epoch_32.pt"
    if wrapped:
        parallel = {f"module.{name}": weight for name, weight in weights.items()}
        torch.save({"epoch": 32, "name": "run", "state_dict": parallel, "optimizer": {}}, path)
    else:
        torch.save(weights, path)
    monkeypatch.setitem(sys.modules, "open_clip", OpenCLIP(str(path)))
    model = load_clip(f"openclip:ViT-S/{path if wrapped else 'web'}")
    assert same_weights(model, vit.state_dict())
    assert activations(model) == {nn.GELU if wrapped else QuickGELU}


@pytest.mark.parametrize(
    "name, message",
    [
        ("openclip:ViT-Z/web", "OpenCLIP has no model ViT-Z; there are ViT-S"),
        ("openclip:ViT-S/wab", "no weights wab of ViT-S, and there is no such file; there are web"),
        ("openclip:ViT-S", "no weights .none named. of ViT-S"),
    ],
)
def test_an_unknown_openclip_name_lists_the_nearest(monkeypatch, name, message):
    monkeypatch.setitem(sys.modules, "open_clip", OpenCLIP(""))
    with pytest.raises(UserError, match=message):
        load_clip(name)


@pytest.mark.parametrize(
    "name, module, extra",
    [("openclip:ViT-B-32/openai", "open_clip", "openclip"), ("hf:a/b", "huggingface_hub", "hf")],
)
def test_a_missing_library_names_its_extra(monkeypatch, name, module, extra):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"{name} needs .*pip install 'apd-clip\[{extra}\]'"):
        load_clip(name)


def changed(part, **values):
    """OpenCLIP's config of the tests' ViT with other values."""
    config = json.loads(json.dumps(OPENCLIP))["model_cfg"]
    (config[part] if part else config).update(values)
    return config


@pytest.mark.parametrize(
    "config, fault",
    [
        (
            changed("vision_cfg", patch_size=4),
            r"of another shape: visual.conv1.weight ..128, 3, 8, 8",
        ),
        (changed("vision_cfg", layers=4), "missing: visual.transformer.resblocks.3.attn.in_proj_b"),
        (changed("vision_cfg", layers=2), "unexpected: visual.transformer.resblocks.2.attn.in_pr"),
        (changed("vision_cfg", width=256), "of another shape: visual.class_embedding ..128,., not"),
        (
            changed("vision_cfg", image_size=48),
            r"visual.positional_embedding ..17, 128., not .37, ",
        ),
        (changed("vision_cfg", layers=[1, 1, 1, 1]), "missing: visual.attnpool.c_proj.bias"),
        (changed("text_cfg", layers=2), "unexpected: transformer.resblocks.2.attn.in_proj_bias"),
        (changed("text_cfg", width=128), "of another shape: ln_final.bias ..64,., not .128,"),
        (
            changed("text_cfg", context_length=32),
            r"of another shape: positional_embedding ..77, 64",
        ),
        (changed("", embed_dim=64), r"of another shape: text_projection ..64, 32., not .64, 64"),
    ],
)
def test_a_file_of_another_model_than_the_named_one_is_refused(
    vit, tmp_path, monkeypatch, config, fault
):
    torch.save(vit.state_dict(), tmp_path / "clip.pt")
    library = OpenCLIP("")
    library.get_model_config = lambda name: config
    monkeypatch.setitem(sys.modules, "open_clip", library)
    with pytest.raises(UserError, match=f"are not of the model .*{fault}.*name the model") as error:
        load_clip(f"openclip:ViT-S/{tmp_path / 'clip.pt'}")
    assert "\n" not in str(error.value)


def test_a_folder_with_the_weights_of_another_model_is_refused(vit, tmp_path):
    config = {**CONFIG, "vision_config": {**CONFIG["vision_config"], "num_hidden_layers": 2}}
    with pytest.raises(UserError, match="unexpected: visual.transformer.resblocks.2.attn"):
        load_clip(folder_of(tmp_path / "hf", huggingface(vit.state_dict()), config))
    config = {"embed_dim": 32, "vision_cfg": {"layers": 3, "width": 0}, "text_cfg": {}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    save(vit.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    with pytest.raises(UserError, match="its config is of no CLIP"):
        load_clip(str(tmp_path))


@pytest.mark.filterwarnings("ignore")  # torch deprecates torch.jit
@pytest.mark.parametrize("quick", [True, False])
def test_an_archives_own_activation_is_held_against_the_model(vit, tmp_path, monkeypatch, quick):
    inputs = torch.zeros(1, 3, 32, 32), clip.tokenize("a")
    torch.jit.trace(vit, inputs, check_trace=False).save(tmp_path / "clip.pt")
    library = OpenCLIP("")
    library.get_model_config = lambda name: changed("", quick_gelu=quick)
    monkeypatch.setitem(sys.modules, "open_clip", library)
    name = f"openclip:ViT-S/{tmp_path / 'clip.pt'}"
    if quick:
        assert activations(load_clip(name)) == {QuickGELU}
        return
    with pytest.raises(UserError, match="transformer has activation quick_gelu, not gelu"):
        load_clip(name)


@pytest.mark.parametrize(
    "name, ours",
    [
        ("openclip:hf-hub:laion/CLIP-ViT-B-32", "hf:laion/CLIP-ViT-B-32"),
        ("openclip:local-dir:/data/clip", "/data/clip"),
        ("openclip:timm/nothing:x/y", None),
    ],
)
def test_openclips_other_schemes_are_told_our_names_for_them(monkeypatch, name, ours):
    def get_model_config(name):
        raise AssertionError("it would go to the network or the disk")

    library = OpenCLIP("")
    library.get_model_config = lambda model: get_model_config(model) if ":" in model else None
    monkeypatch.setitem(sys.modules, "open_clip", library)
    with pytest.raises(
        UserError, match=f"is {ours} here" if ours else "OpenCLIP has no model timm"
    ):
        load_clip(name)


def hub(folder, online=True):
    """What ``find_foreign`` asks the hub for."""

    def list_repo_files(repository):
        if not online:
            raise OSError("no route to host")
        return [path.name for path in folder.iterdir()]

    def snapshot_download(repository, local_files_only):
        return str(folder)

    downloads = []

    def hf_hub_download(repository, file):
        downloads.append(file)
        return str(folder / file)

    return SimpleNamespace(
        list_repo_files=list_repo_files,
        hf_hub_download=hf_hub_download,
        snapshot_download=snapshot_download,
        downloads=downloads,
    )


@pytest.mark.parametrize("online", [True, False], ids=["online", "cached"])
def test_a_hub_name_fetches_one_copy_of_the_weights(vit, tmp_path, monkeypatch, online):
    folder_of(tmp_path / "hf", huggingface(vit.state_dict()))
    (tmp_path / "hf" / "tf_model.h5").touch()
    client = hub(tmp_path / "hf", online)
    monkeypatch.setitem(sys.modules, "huggingface_hub", client)
    model = load_clip("hf:someone/clip")
    assert same_weights(model, vit.state_dict())
    wanted = ["config.json", "pytorch_model.bin", "preprocessor_config.json"]
    assert client.downloads == (wanted if online else [])


def test_a_folder_of_an_openai_name_hides_nothing(vit, tmp_path, monkeypatch):
    (tmp_path / "RN50").mkdir()
    torch.save(vit.state_dict(), tmp_path / "RN50.pt")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(clip.clip, "_download", lambda url, root: str(tmp_path / "RN50.pt"))
    assert same_weights(load_clip("RN50"), vit.state_dict())


@pytest.mark.parametrize(
    "change, odd",
    [
        ({"model_type": "siglip"}, "model_type siglip"),
        ({"text_config": {"vocab_size": 32000}}, "vocab_size 32000"),
        ({"vision_config": {"hidden_act": "silu"}}, "vision hidden_act silu"),
        ({"text_config": {"intermediate_size": 37}}, "text intermediate_size 37 of width 512"),
    ],
)
def test_a_transformers_model_that_does_not_fit_is_refused_by_name(tmp_path, change, odd):
    name = folder_of(tmp_path / "hf", {}, {**CONFIG, **change})
    with pytest.raises(UserError, match=f"{name} is not of OpenAI's CLIP .*it has {odd}") as error:
        load_clip(name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "part, change, odd",
    [
        ("", {"custom_text": True, "init_logit_bias": -10}, "custom_text, init_logit_bias"),
        ("", {"multimodal_cfg": {"layers": 12}}, "multimodal_cfg"),
        ("vision_cfg", {"timm_model_name": "convnext_base"}, "vision_cfg.timm_model_name"),
        ("vision_cfg", {"mlp_ratio": 4.9}, "vision_cfg.mlp_ratio"),
        ("text_cfg", {"hf_tokenizer_name": "t5-base"}, "text_cfg.hf_tokenizer_name"),
        (
            "text_cfg",
            {"no_causal_mask": True, "pool_type": "last"},
            "text_cfg.no_causal_mask, text_cfg.p",
        ),
    ],
)
def test_an_openclip_model_that_does_not_fit_is_refused_by_name(tmp_path, part, change, odd):
    config = json.loads(json.dumps(OPENCLIP))
    (config["model_cfg"][part] if part else config["model_cfg"]).update(change)
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    torch.save({}, tmp_path / "open_clip_pytorch_model.bin")
    with pytest.raises(UserError, match=f"is not of OpenAI's CLIP .*it has {odd}"):
        load_clip(str(tmp_path))


@pytest.mark.parametrize(
    "files, message",
    [
        ({}, "there is no CLIP in it: it needs config.json"),
        ({"config.json": "{}"}, "and the weights in safetensors or bin"),
        ({"config.json": "{", "pytorch_model.bin": ""}, "cannot read .*config.json"),
        ({"config.json": "[]", "pytorch_model.bin": ""}, "config.json is not what its layout has"),
        ({"config.json": '{"model_type": "clip"}', "pytorch_model.bin": "?"}, "it is damaged"),
        ({"config.json": '{"model_type": "clip"}', "model.safetensors": "?"}, "cannot be read"),
        ({"open_clip_config.json": "{}", "open_clip_pytorch_model.bin": ""}, "model_cfg"),
    ],
)
def test_a_folder_that_cannot_be_read_is_told_in_one_line(tmp_path, files, message):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message) as error:
        load_clip(str(tmp_path))
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_pixels_are_normalised_by_the_models_own_mean_and_std(vit, tmp_path):
    config = {**CONFIG, "text_config": {**CONFIG["text_config"], "hidden_act": "quick_gelu"}}
    name = folder_of(tmp_path / "hf", huggingface(vit.state_dict()), config)
    model = build_prompted_clip(load_clip(name), ["cat", "dog"])
    mean, std = (torch.tensor(PIXELS[key]).view(3, 1, 1) for key in ("image_mean", "image_std"))
    want = model.clip.encode_image((IMAGES - mean) / std)
    assert torch.allclose(model.image_embeddings(IMAGES), want, atol=1e-5)


# -- another resolution -----------------------------------------------------------------------


def test_positions_are_interpolated_for_another_resolution(vit, tmp_path):
    torch.save(vit.state_dict(), tmp_path / "clip.pt")
    model = load_clip(str(tmp_path / "clip.pt"), resolution=48)
    old, new = vit.visual.positional_embedding, model.visual.positional_embedding
    assert model.visual.input_resolution == 48 and new.shape == (37, 128)
    assert torch.equal(new[0], old[0])  # the class token's
    assert torch.allclose(new[1:].mean(0), old[1:].mean(0), atol=0.05)
    images = torch.rand(2, 3, 48, 48)
    prompted = build_prompted_clip(model, ["cat", "dog"])
    pixels = (images - prompted.mean) / prompted.std
    assert torch.allclose(prompted.image_embeddings(images), model.encode_image(pixels), atol=1e-5)
    same = load_clip(str(tmp_path / "clip.pt"), resolution=32)
    assert torch.equal(same.visual.positional_embedding, old)


@pytest.mark.parametrize(
    "backbone, resolution, message",
    [
        ("vit", 50, "RESOLUTION is 50: it must be a multiple of the patch size .* 8"),
        ("resnet", 96, "a ResNet reads images of its own resolution only, 64"),
    ],
)
def test_resolutions_that_do_not_fit_are_told(request, tmp_path, backbone, resolution, message):
    torch.save(request.getfixturevalue(backbone).state_dict(), tmp_path / "clip.pt")
    with pytest.raises(UserError, match=message):
        load_clip(str(tmp_path / "clip.pt"), resolution=resolution)


# -- the libraries themselves -----------------------------------------------------------------


def assert_features(model, images, tokens, theirs_of_images, theirs_of_text):
    """To 1e-5 of unit features, through our own encoders."""
    prompted = build_prompted_clip(model, ["a", "b"])
    unit = torch.nn.functional.normalize
    ours = prompted.image_features(images)
    assert (ours - unit(theirs_of_images)).abs().max() < 1e-5
    texts = build_prompted_clip(
        model, ["photo of a cat", "dogs, asleep in the"], templates=["a {}."]
    )
    assert texts.text_features().shape == (2, ours.shape[1])
    assert (unit(model.encode_text(tokens)) - unit(theirs_of_text)).abs().max() < 1e-5
    one = build_prompted_clip(model, ["cat"], templates=["a photo of a {}."])
    assert (one.text_features() - unit(theirs_of_text[:1])).abs().max() < 1e-5


def randomised(model):
    """Norms, biases and positions start at values that would hide what swaps them."""
    torch.manual_seed(4)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1:
                weight.add_(0.3 * torch.randn_like(weight))
            elif "embedding" in name:
                weight.normal_(std=0.3)
    return model.eval()


@pytest.mark.parametrize("quick", [True, False], ids=["QuickGELU", "GELU"])
@pytest.mark.parametrize("kind", ["vit", "resnet"])
@pytest.mark.parametrize("resolution", [0, 96])
@torch.no_grad()
def test_features_equal_openclips(tmp_path, tokens, kind, quick, resolution):
    open_clip = pytest.importorskip("open_clip")
    if kind == "resnet" and resolution:
        pytest.skip("a ResNet has one resolution")
    vision = {
        "vit": {"image_size": 64, "layers": 2, "width": 128, "patch_size": 16, "head_width": 32},
        "resnet": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8},
    }[kind]
    config = {
        "embed_dim": 32,
        "quick_gelu": quick,
        "vision_cfg": vision,
        "text_cfg": {
            "context_length": 77,
            "vocab_size": 49408,
            "width": 64,
            "heads": 2,
            "layers": 2,
        },
    }
    theirs = randomised(open_clip.model.CLIP(**config))
    torch.save(theirs.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    pixels = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
    settings = {"model_cfg": config, "preprocess_cfg": pixels}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(settings))
    model = load_clip(str(tmp_path), resolution=resolution)
    if resolution:
        weights = theirs.state_dict()
        vision["image_size"] = resolution
        theirs = open_clip.model.CLIP(**config).eval()
        open_clip.model.resize_pos_embed(weights, theirs)
        theirs.load_state_dict(weights)
    images = torch.rand(3, 3, resolution or 64, resolution or 64)
    mean, std = (torch.tensor(pixels[key]).view(3, 1, 1) for key in ("mean", "std"))
    of_images = theirs.encode_image((images - mean) / std)
    assert_features(model, images, tokens, of_images, theirs.encode_text(tokens))
    theirs_tokens = open_clip.SimpleTokenizer()(["a photo of a cat."])
    assert torch.equal(theirs_tokens, tokens[:1])


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-32-quickgelu", "RN50", "ViT-H-14"])
def test_openclips_own_configs_are_taken(tmp_path, name):
    open_clip = pytest.importorskip("open_clip")
    from apd.clip.foreign import openclip_model

    config = open_clip.get_model_config(name)
    design = openclip_model([], {"model_cfg": config}, name).design
    assert design.image.heads == {"ViT-H-14": 16, "RN50": None}.get(name, 12)
    quick = "quick_gelu" if name.endswith("quickgelu") else "gelu"
    assert (design.image.activation, design.text.activation) == (quick, quick)


@pytest.mark.parametrize(
    "name",
    """
        ViT-B-16-SigLIP coca_ViT-B-32 EVA02-B-16 convnext_base MobileCLIP-B
        ViT-L-14-CLIPA roberta-ViT-B-32 PE-Core-B-16 ViT-bigG-14
    """.split(),
)
def test_other_models_of_openclip_are_refused(name):
    open_clip = pytest.importorskip("open_clip")
    from apd.clip.foreign import openclip_model

    with pytest.raises(UserError, match=f"{name} is not of OpenAI's CLIP architecture"):
        openclip_model([], {"model_cfg": open_clip.get_model_config(name)}, name)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
@torch.no_grad()
def test_features_equal_transformers(tmp_path, tokens, activation, safe):
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPConfig(
        text_config={**CONFIG["text_config"], "hidden_act": activation, "eos_token_id": 49407},
        vision_config={**CONFIG["vision_config"], "hidden_act": activation},
        projection_dim=32,
    )
    theirs = randomised(transformers.CLIPModel(config))
    theirs.save_pretrained(tmp_path)
    if not safe:
        (tmp_path / "model.safetensors").unlink()
        torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    model = load_clip(str(tmp_path))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    found = theirs(input_ids=tokens, pixel_values=(IMAGES - mean) / std)
    assert_features(model, IMAGES, tokens, found.image_embeds, found.text_embeds)
    assert torch.equal(model.logit_scale, theirs.logit_scale)


def test_shards_lie_in_the_folder(vit, tmp_path):
    """An index that came with a download names no file elsewhere."""
    folder = tmp_path / "clip"
    folder.mkdir()
    shard(huggingface(vit.state_dict()), folder, "pytorch_model", ".bin")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    index = folder / "pytorch_model.bin.index.json"
    text = index.read_text()
    (folder / "pytorch_model-00002-of-00002.bin").rename(tmp_path / "elsewhere.bin")
    for path in ("../elsewhere.bin", str(tmp_path / "elsewhere.bin")):
        index.write_text(text.replace("pytorch_model-00002-of-00002.bin", path))
        with pytest.raises(UserError, match="lacks .*elsewhere.bin"):
            load_clip(str(folder))
