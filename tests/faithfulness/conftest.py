"""Trainers in float64 on tiny CLIPs, with weights and prompts so large that every term matters."""

import functools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from clip.model import CLIP
from PIL import Image


@pytest.fixture(scope="session")
def backbones(tmp_path_factory):
    """Two CLIPs, each a file (``path``) and its weights in float64 (``clip``)."""
    folder = tmp_path_factory.mktemp("backbones")
    return {
        "own": _random_clip(folder / "own.pt", seed=1, embed_dim=32),
        "other": _random_clip(folder / "other.pt", seed=2, embed_dim=48),
    }


def _random_clip(path, seed, embed_dim):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CLIP(
            embed_dim=embed_dim,
            image_resolution=32,
            vision_layers=3,
            vision_width=128,
            vision_patch_size=8,
            context_length=77,
            vocab_size=49408,
            transformer_width=64,
            transformer_heads=1,
            transformer_layers=4,
        )
        with torch.no_grad():  # CLIP's own start would hide what drops or swaps weights
            for name, weight in model.named_parameters():
                if "ln_" in name and name.endswith("weight"):
                    weight.normal_(1, 0.3)
                elif "bias" in name or "embedding" in name:
                    weight.normal_(std=0.3)
                elif "in_proj" in name:
                    weight.normal_(std=1.3 * weight.shape[1] ** -0.5)
            model.logit_scale.fill_(3)
    torch.save(model.state_dict(), path)
    return SimpleNamespace(path=str(path), clip=model.double().requires_grad_(False))


@pytest.fixture(scope="session")
def names():
    """The classes, in the order of their labels, which is not that of their lengths."""
    return ["golden_retriever", "ox", "square", "yellow_lady's_slipper"]


@pytest.fixture(scope="session")
def batch():
    """5 images, an odd number, and their labels."""
    generator = torch.Generator().manual_seed(2)
    images = torch.rand(5, 3, 32, 32, dtype=torch.float64, generator=generator)
    return images, torch.tensor([2, 0, 3, 1, 2])


@pytest.fixture(scope="session")
def root(names, tmp_path_factory):
    """Of the data set ``things``: an image of each class to train on, and one for the test."""
    root = tmp_path_factory.mktemp("data")
    pixels = np.random.default_rng(0).integers(0, 256, (2, len(names), 32, 32, 3), np.uint8)
    for split, images in zip(("train", "test"), pixels):
        for name, image in zip(names, images):
            (root / "things" / split / name).mkdir(parents=True)
            Image.fromarray(image).save(root / "things" / split / name / "0.png")
    return root


@pytest.fixture(scope="session")
def load64():
    """``load_clip`` in float64; what it has loaded stays: no method changes its CLIP."""
    from apd.clip.load import load_clip

    return functools.cache(lambda *names: load_clip(*names).double())


@pytest.fixture
def trainer64(build, backbones, load64, root, monkeypatch, tmp_path):
    """Function: the trainer of a method with these options, in float64, its prompts drawn anew.

    An option's value may be the name of a backbone.
    """
    import apd.training.base as base

    monkeypatch.setattr(base, "load_clip", load64)

    def draw(model, seed):
        generator = torch.Generator().manual_seed(seed)
        for name, weight in model.prompt_learner.named_parameters():
            torch.nn.init.normal_(weight, std=0.3, generator=generator)  # no two layers alike
            if name.endswith((".tau", ".alpha")):  # within MMoP's bounds, where they have gradients
                with torch.no_grad():
                    weight.mul_(0.3).add_(0.5)

    def trainer64(method, *options):
        options = [backbones[o].path if o in backbones else o for o in options]
        if "checkpoint" in options:
            trainer64("IVLP").save_model(0, tmp_path / "IVLP")
            options += ["TRAINER.APD.TEACHER.PATH", tmp_path / "IVLP"]
        trainer = build(
            method,
            tmp_path / method,
            "DATASET.ROOT",
            root,
            "DATASET.FOLDER.DIR",
            "things",
            "DATASET.NUM_SHOTS",
            1,
            "MODEL.BACKBONE.NAME",
            backbones["own"].path,
            *options,
        )
        draw(trainer.model, seed=4)
        if hasattr(trainer, "teacher"):
            draw(trainer.teacher, seed=5)
        return trainer

    return trainer64
