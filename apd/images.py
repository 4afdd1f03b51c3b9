"""Reading images as CLIP's own pipeline does; images that it would read wrongly are refused."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from PIL import Image

from apd.errors import UserError, one_line

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm")  # in any case


def read_image(path: str | os.PathLike, decode: bool = True) -> Image.Image:
    """Read an image file as ``open_rgb`` does.

    Raises:
        UserError: what is wrong with it, and how to mend it.
    """
    try:
        return open_rgb(path, decode)
    except ValueError as error:
        raise UserError(
            f"cannot read image {os.fspath(path)} ({error}): mend it, or fetch it again; "
            "python -m apd.doctor --deep finds all such images"
        ) from error


def open_rgb(path: str | os.PathLike, decode: bool = True) -> Image.Image:
    """Open an image file as 8-bit RGB, by Pillow's ``convert``, as Dassl and torchvision do.

    So a rotation in EXIF is not applied, transparent pixels have the colour that they store, and of
    several frames the first one is taken.

    Args:
        decode: False: read the file's header only, and return the image without its pixels.

    Raises:
        ValueError: it is missing, damaged, larger than Pillow allows, or not of 8 bits.
    """
    try:
        with Image.open(path) as image:
            return to_rgb(image) if decode else check_bits(image)
    except Image.DecompressionBombError as error:
        raise ValueError("it has more pixels than Pillow reads: make it smaller") from error
    except Exception as error:  # damaged bytes can raise anything
        reason = one_line(error).replace(f" '{os.fspath(path)}'", "") or type(error).__name__
        raise ValueError(reason) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """``image`` as 8-bit RGB.

    Raises:
        ValueError: it has more than 8 bits.
    """
    return check_bits(image).convert("RGB")


def check_bits(image: Image.Image) -> Image.Image:
    """``image``, if it has 8 bits.

    Raises:
        ValueError: it has more. ``convert`` would clip them to 0..255, mostly to white or black.
    """
    if image.mode[0] in "IF":
        raise ValueError(f"mode {image.mode} has more than 8 bits: save it with 8")
    return image


def as_tensor(image: Image.Image, size: int = 0, interpolation: str = "bicubic") -> Tensor:
    """An image as RGB (3, H, W) in [0, 1], as in evaluation; it is not normalised.

    Args:
        size: the shorter edge is resized to so many pixels, and a square of this size is cut out
            from the centre; 0: the image keeps its size.
        interpolation: of the resize: bicubic, bilinear or nearest.

    Raises:
        UserError: it has more than 8 bits.
    """
    from torchvision import transforms as T  # slow to import

    try:
        image = to_rgb(image)
    except ValueError as error:
        raise UserError(f"an image of {error}") from error
    if size:
        mode = T.InterpolationMode[interpolation.upper()]
        image = T.Compose([T.Resize(size, mode), T.CenterCrop(size)])(image)
    return T.ToTensor()(image)
