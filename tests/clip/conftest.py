"""Tiny CLIPs with random weights, large enough that every term of the computation matters."""

import copy

import pytest
import torch
from clip.model import CLIP
from torch import nn


def _random_clip(seed, **vision):
    torch.manual_seed(seed)
    model = CLIP(
        embed_dim=32,
        context_length=77,
        vocab_size=49408,
        transformer_width=64,
        transformer_heads=2,
        transformer_layers=3,
        **vision,
    )
    # CLIP starts with biases at 0, norms at 1 and positions near 0, which would hide what drops
    # or swaps them
    with torch.no_grad():
        for module in model.modules():
            for name, weight in module.named_parameters(recurse=False):
                if "norm" in type(module).__name__.lower() and name == "weight":
                    weight.copy_(1 + 0.3 * torch.randn_like(weight))
                elif name.endswith("bias"):
                    weight.normal_(std=0.3)
                elif "embedding" in name or isinstance(module, nn.Embedding):
                    weight.normal_(std=0.3)
                elif name == "in_proj_weight":
                    weight.normal_(std=1.3 * weight.shape[1] ** -0.5)
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(std=0.3)
                module.running_var.uniform_(0.5, 1.5)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def vit():
    return _random_clip(
        1, image_resolution=32, vision_layers=3, vision_width=128, vision_patch_size=8
    )


@pytest.fixture(scope="session")
def vit64(vit):
    """The same weights in float64."""
    return copy.deepcopy(vit).double()


@pytest.fixture(scope="session")
def resnet():
    return _random_clip(
        2, image_resolution=64, vision_layers=(1, 1, 1, 1), vision_width=4, vision_patch_size=None
    )
