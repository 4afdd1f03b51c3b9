"""Images to tensors: Dassl's augmentations by name, on torchvision's transforms."""

from __future__ import annotations

import random

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms as T
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from apd.errors import UserError
from apd.host.embedded.registry import check_availability

INTERPOLATION_MODES = {
    "bilinear": InterpolationMode.BILINEAR,
    "bicubic": InterpolationMode.BICUBIC,
    "nearest": InterpolationMode.NEAREST,
}


class Random2DTranslation:
    """With probability ``p`` a random crop out of the image enlarged by 1/8, else the image."""

    def __init__(self, height, width, p=0.5, interpolation=InterpolationMode.BILINEAR) -> None:
        self.size, self.p, self.interpolation = (height, width), p, interpolation

    def __call__(self, img: Image.Image) -> Image.Image:
        height, width = self.size
        if random.uniform(0, 1) > self.p:
            return F.resize(img, [height, width], self.interpolation)
        large = [int(round(height * 1.125)), int(round(width * 1.125))]
        left = int(round(random.uniform(0, large[1] - width)))
        top = int(round(random.uniform(0, large[0] - height)))
        return F.crop(F.resize(img, large, self.interpolation), top, left, height, width)


class InstanceNormalization:
    """Each channel of a tensor (C, H, W) to mean 0 and standard deviation 1."""

    def __init__(self, eps: float = 1e-8) -> None:
        self.eps = eps

    def __call__(self, img: Tensor) -> Tensor:
        std, mean = torch.std_mean(img, dim=(1, 2), keepdim=True)
        return (img - mean) / (std + self.eps)


class Cutout:
    """Zero ``n_holes`` squares of ``length`` pixels in a tensor (C, H, W); edges may cut them."""

    def __init__(self, n_holes: int = 1, length: int = 16) -> None:
        self.n_holes, self.half = n_holes, length // 2

    def __call__(self, img: Tensor) -> Tensor:
        img = img.clone()
        for _ in range(self.n_holes):
            y, x = np.random.randint(img.shape[1]), np.random.randint(img.shape[2])
            rows = slice(max(y - self.half, 0), y + self.half)
            img[:, rows, max(x - self.half, 0) : x + self.half] = 0
        return img


class GaussianNoise:
    """With probability ``p`` add normal noise."""

    def __init__(self, mean: float = 0.0, std: float = 0.15, p: float = 0.5) -> None:
        self.mean, self.std, self.p = mean, std, p

    def __call__(self, img: Tensor) -> Tensor:
        if random.uniform(0, 1) > self.p:
            return img
        return img + torch.randn(img.size()) * self.std + self.mean


# The searched policies are code of their own in Dassl, and torchvision's differ from them.
_LEFT_OUT = (
    "imagenet_policy",
    "cifar10_policy",
    "svhn_policy",
    "randaugment",
    "randaugment_fixmatch",
    "randaugment2",
)


def _augmentations(c) -> tuple[dict, dict]:
    """Name to transform, in the order of application: on images, then on tensors."""
    mode = INTERPOLATION_MODES[c.INTERPOLATION]
    jitter = (c.COLORJITTER_B, c.COLORJITTER_C, c.COLORJITTER_S, c.COLORJITTER_H)
    on_images = {
        "random_translation": Random2DTranslation(*c.SIZE),
        "random_crop": T.RandomCrop(c.SIZE, padding=c.CROP_PADDING),
        "random_resized_crop": T.RandomResizedCrop(
            c.SIZE, scale=c.RRCROP_SCALE, interpolation=mode
        ),
        "random_flip": T.RandomHorizontalFlip(),
        "colorjitter": T.ColorJitter(*jitter),
        "randomgrayscale": T.RandomGrayscale(c.RGS_P),
        "gaussian_blur": T.RandomApply([T.GaussianBlur(c.GB_K)], c.GB_P),
    }
    on_tensors = {
        "cutout": Cutout(c.CUTOUT_N, c.CUTOUT_LEN),
        "normalize": T.Normalize(c.PIXEL_MEAN, c.PIXEL_STD),
        "gaussian_noise": GaussianNoise(c.GN_MEAN, c.GN_STD),
        "instance_norm": InstanceNormalization(),
    }
    return on_images, on_tensors


def build_transform(cfg, is_train: bool = True, choices=None) -> T.Compose | None:
    """Build what turns a PIL image into a tensor (3, H, W), in [0, 1] unless normalised.

    Training applies ``cfg.INPUT.TRANSFORMS`` (or ``choices``) in a fixed order, after a resize
    to ``cfg.INPUT.SIZE`` unless one of them crops to it. Testing resizes the smaller edge and
    crops the centre; only the normalisations apply. None with ``cfg.INPUT.NO_TRANSFORM``.

    Raises:
        UserError: an unknown augmentation, or one that needs upstream Dassl.
    """
    if cfg.INPUT.NO_TRANSFORM:
        return None
    choices = cfg.INPUT.TRANSFORMS if choices is None else choices
    check_availability(cfg.INPUT.INTERPOLATION, INTERPOLATION_MODES)
    on_images, on_tensors = _augmentations(cfg.INPUT)
    for choice in choices:
        if choice in _LEFT_OUT:
            raise UserError(f"INPUT.TRANSFORMS: {choice} needs upstream Dassl (APD_HOST=dassl)")
        check_availability(choice, [*on_images, *on_tensors, "center_crop"])
    size, mode = cfg.INPUT.SIZE, INTERPOLATION_MODES[cfg.INPUT.INTERPOLATION]
    if is_train:
        crops = {"random_crop", "random_resized_crop"} & {*choices}
        steps = [] if crops else [T.Resize(size, mode)]
        steps += [step for name, step in on_images.items() if name in choices]
    else:
        steps = [T.Resize(max(size), mode), T.CenterCrop(size)]
        on_tensors = {name: on_tensors[name] for name in ("normalize", "instance_norm")}
    steps.append(T.ToTensor())
    steps += [step for name, step in on_tensors.items() if name in choices]
    return T.Compose(steps)
