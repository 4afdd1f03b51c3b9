"""Shipped configs build their trainer on a CLIP of its backbone's geometry, without weights."""

import runpy
from pathlib import Path

import pytest
import torch

import apd
import apd.training.base
from apd.host import build_trainer
from apd.methods import METHODS
from apd.train.command import parse_args, setup_cfg

ROOT = Path(__file__).parents[2]
MADE = runpy.run_path(str(ROOT / "scripts" / "make_configs.py"))
FOLDER = MADE["FOLDER"]
# embed_dim, vision layers, width, patch; text width, heads. All: 224 px, 12 text layers
OPENAI = {
    "ViT-B/32": (512, 12, 768, 32, 512, 8),
    "ViT-B/16": (512, 12, 768, 16, 512, 8),
    "ViT-L/14": (768, 24, 1024, 14, 768, 12),
    "RN50": (1024, (3, 4, 6, 3), 64, None, 512, 8),
    "RN101": (512, (3, 4, 23, 3), 64, None, 512, 8),
}
WIDTHS = {  # of text and image tokens; ResNets have none
    "mini": (64, 128),
    "vit_b32": (512, 768),
    "vit_b16": (512, 768),
    "vit_l14": (768, 1024),
    "rn50": (512, None),
    "rn101": (512, None),
}
# configs of a method differ in their CLIP alone (scripts/make_configs.py): two of them will do
FILES = [
    *((method, stem) for method in MADE["METHODS"] for stem in ("mini", "vit_b32")),
    *(("APD", stem) for stem in ("vit_b16", "vit_l14")),
    *(("CoOp", stem) for stem in ("rn50", "rn101")),
    ("AdvPT", "rn50"),
]
PROMPTS = {  # (vectors, layers) of text and of image prompts: published, and the mini CLIP's
    "ZeroshotCLIP": [((0, 0), (0, 0)), ((0, 0), (0, 0))],
    "ZeroshotCLIP2": [((0, 0), (0, 0)), ((0, 0), (0, 0))],
    "CoOp": [((16, 1), (0, 0)), ((16, 1), (0, 0))],
    "VPT": [((0, 0), (8, 12)), ((0, 0), (4, 4))],
    "IVLP": [((2, 12), (2, 12)), ((4, 3), (4, 4))],
    "MaPLe": [((2, 9), (2, 9)), ((4, 3), (4, 3))],
    "APT": [((16, 1), (0, 0)), ((16, 1), (0, 0))],
    "AdvPT": [((32, 1), (0, 0)), ((16, 1), (0, 0))],
    "AdvVPT": [((0, 0), (2, 9)), ((0, 0), (4, 4))],
    "AdvIVLP": [((2, 9), (2, 9)), ((4, 3), (4, 4))],
    "AdvMaPLe": [((2, 9), (2, 9)), ((4, 3), (4, 3))],
    "FAP": [((2, 9), (2, 9)), ((4, 3), (4, 3))],
    "CBAFAPT": [((2, 9), (2, 9)), ((4, 3), (4, 3))],
    "MMoP": [((2, 9), (2, 9)), ((4, 3), (4, 4))],
    "TTC": [((0, 0), (0, 0)), ((0, 0), (0, 0))],
    "RTPT": [((4, 1), (0, 0)), ((4, 1), (0, 0))],
    "TAPT": [((0, 0), (0, 0)), ((0, 0), (0, 0))],
    "APD": [((2, 9), (2, 9)), ((4, 3), (4, 4))],
}


def parameters(method, text, image, text_width, image_width):
    """How many numbers a method learns."""
    (text_count, text_layers), (image_count, image_layers) = text, image
    if method in ("MaPLe", "AdvMaPLe"):  # text vectors, and a projection to images in each layer
        projection = text_width * image_width + image_width
        return text_layers * (text_count * text_width + projection)
    if method in ("FAP", "CBAFAPT"):  # the first layer as MaPLe's, the others the other way round
        first = text_count * text_width + text_width * image_width + image_width
        other = image_count * image_width + image_width * text_width + text_width
        return first + (image_layers - 1) * other
    if method == "MMoP":  # vectors; in deeper layers 5 experts, their base, a router and two scales
        return sum(
            count * width + (layers - 1) * (6 * count * width + 5 * width + 5 + 2)
            for count, layers, width in (
                (text_count, text_layers, text_width),
                (image_count, image_layers, image_width),
            )
        )
    independent = text_count * text_layers * text_width
    if image_layers:
        independent += image_count * image_layers * image_width
    return independent * (2 if method == "APD" else 1)  # its online teacher has as many


def clip_without_weights(name, robust, resolution, device):
    """As ``load_clip``; the memory of the weights is claimed but never touched."""
    from clip.model import CLIP

    embed_dim, layers, width, patch, text_width, heads = OPENAI[name]
    with torch.device("meta"):
        model = CLIP(embed_dim, 224, layers, width, patch, 77, 49408, text_width, heads, 12)
    return model.to_empty(device="cpu").eval().requires_grad_(False)


@pytest.mark.parametrize("method, file", FILES)
def test_config_builds_its_trainer(method, file, tiny, monkeypatch):
    apd.register()
    path = str(FOLDER / method / f"{file}.yaml")
    args = ["--root", tiny.root, "--seed", "1", "--trainer", method, "--config-file", path]
    args += "DATASET.NAME Folder DATASET.FOLDER.DIR shapes DATASET.NUM_SHOTS 2".split()
    args += "DATALOADER.NUM_WORKERS 0 USE_CUDA False VERBOSE False".split()
    cfg = setup_cfg(parse_args(args))
    if file != "mini":
        monkeypatch.setattr(apd.training.base, "load_clip", clip_without_weights)
    trainer = build_trainer(cfg)  # also compares INPUT.SIZE with the backbone's

    learned = [p for model in trainer._models.values() for p in model.parameters()]
    assert all(p.requires_grad for p in learned)
    assert bool(learned) == bool(METHODS[method].prompts) or METHODS[method].defence
    assert not any(p.requires_grad for p in trainer.clip_model.parameters())
    if method in PROMPTS:
        check_geometry(trainer, method, file, sum(p.numel() for p in learned))


def check_geometry(trainer, method, file, learned):
    text, image = PROMPTS[method][file == "mini"]
    widths = WIDTHS[file]
    learner = trainer.model.prompt_learner
    for contexts, (count, layers), width in zip(
        (learner.text_contexts(), learner.visual_contexts()), (text, image), widths
    ):
        assert [tuple(getattr(c, "base", c).shape) for c in contexts] == [(count, width)] * layers
    sides = {"text": text, "visual": image}
    modality = " + ".join(side for side, (count, _) in sides.items() if count)
    assert trainer.model.modality == (modality or "none")
    assert learned == parameters(method, text, image, *widths)
