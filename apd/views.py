"""Random views of images: crops, flips and AugMix on tensors, which can be differentiated.

A view depends on its image and a seed only, not on the other images. Numbers are those of R-TPT's
published code (TomSheng21/R-TPT, ``data/datautils.py`` and ``data/augmix_ops.py``). That code works
on larger 8-bit images; here images have the encoder's size, and values are not rounded.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

_TRIES = 10  # for a crop that fits, as torchvision's RandomResizedCrop
_SCALE, _RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
_CHAINS = _DEPTH = 3  # of AugMix: chains that are mixed, and most operations of a chain
_SIZE = 224  # of the published operations' images, in pixels; shifts are relative to it
_CROP_DRAWS = 2 * _TRIES + 3
_MIX_DRAWS = 1 + 2 * _CHAINS + 3 * _CHAINS * _DEPTH


def seeded_uniform(seeds: Tensor, *shape: int, like: Tensor) -> Tensor:
    """(B, *shape) in [0, 1); row i depends on ``seeds[i]`` only. Device and type as ``like``."""
    rows = [
        torch.rand(shape, generator=Generator().manual_seed(seed), dtype=like.dtype)
        for seed in seeds.tolist()
    ]
    return torch.stack(rows).to(like.device)


def random_views(images: Tensor, seeds: Tensor, count: int, augmix: bool) -> Tensor:
    """Each image and ``count`` - 1 random crops of it: (B, count, 3, R, R) in [0, 1].

    Args:
        images: (B, 3, R, R) in [0, 1].
        seeds: (B,), int64.
        augmix: mix the crops with three chains of operations on them (Hendrycks 2020, arXiv
            1912.02781), each with a severity of 1.
    """
    draws = _CROP_DRAWS + _MIX_DRAWS * augmix
    u = seeded_uniform(seeds, count - 1, draws, like=images).flatten(0, 1)
    views = _crop(images.repeat_interleave(count - 1, dim=0), u[:, :_CROP_DRAWS])
    if augmix:
        views = _augmix(views, u[:, _CROP_DRAWS:])
    return torch.cat([images[:, None], views.unflatten(0, (len(images), count - 1))], dim=1)


# -- crops -----------------------------------------------------------------------------------------


def _crop(images: Tensor, u: Tensor) -> Tensor:
    """Crops resized to the images' size, half of them mirrored; ``u`` (N, 23) in [0, 1)."""
    size = images.shape[-1]
    tries, (top, left, flip) = u[:, : 2 * _TRIES].unflatten(1, (_TRIES, 2)), u[:, 2 * _TRIES :].T
    area = size**2 * (_SCALE[0] + (_SCALE[1] - _SCALE[0]) * tries[..., 0])
    low, high = map(math.log, _RATIO)
    ratio = (low + (high - low) * tries[..., 1]).exp()
    widths, heights = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (widths <= size) & (heights <= size) & (widths > 0) & (heights > 0)
    first = fits.long().argmax(dim=1, keepdim=True)
    whole = ~fits.any(dim=1)  # no try fits: the whole image
    width, height = (sides.gather(1, first)[:, 0] for sides in (widths, heights))
    width, height = (torch.where(whole, size, side) for side in (width, height))
    top, left = ((u * (size - side + 1)).floor() for u, side in ((top, height), (left, width)))
    rows = _bilinear(top, height, size)
    columns = _bilinear(left, width, size)
    columns = torch.where((flip < 0.5)[:, None, None], columns.flip(1), columns)
    return rows[:, None] @ images @ columns[:, None].transpose(-1, -2)


def _bilinear(start: Tensor, length: Tensor, size: int) -> Tensor:
    """(N, size, size): the matrices that resize a part of an axis to ``size`` pixels.

    They give what ``F.interpolate`` gives for the part alone: pixels outside it have no weight.
    """
    pixels = torch.arange(size, dtype=start.dtype, device=start.device)
    at = (pixels + 0.5) * length[:, None] / size - 0.5
    at = start[:, None] + at.clamp_min(0).minimum(length[:, None] - 1)
    return (1 - (at[..., None] - pixels).abs()).clamp_min(0)


# -- AugMix ----------------------------------------------------------------------------------------


def _augmix(views: Tensor, u: Tensor) -> Tensor:
    """m view + (1 - m) sum_i w_i chain_i(view); ``u`` (N, 34) in [0, 1)."""
    share, shares, depths, steps = u.split(
        [1, _CHAINS, _CHAINS, 3 * _CHAINS * _DEPTH], dim=1
    )  # ``shares`` become weights, Dirichlet(1, 1, 1); ``share`` is that of the view, Beta(1, 1)
    weights = -(1 - shares).log()
    weights = weights / weights.sum(dim=1, keepdim=True)
    depths = (1 + (depths * _DEPTH).floor()).flatten()
    steps = steps.unflatten(1, (_CHAINS, _DEPTH, 3)).flatten(0, 1)
    chains = views.repeat_interleave(_CHAINS, dim=0)  # all of them at once
    for depth in range(_DEPTH):
        chains = _operate(chains, steps[:, depth], depths > depth)
    mixed = torch.einsum("ni,nichw->nchw", weights, chains.unflatten(0, (-1, _CHAINS)))
    share = share.view(-1, 1, 1, 1)
    return share * views + (1 - share) * mixed


def _operate(images: Tensor, u: Tensor, on: Tensor) -> Tensor:
    """One of nine operations on each image where ``on``.

    Args:
        u: (N, 3) in [0, 1), of which the operation's number, level and sign are made.
    """
    number = (u[:, 0] * 9).floor().long()
    level = 0.1 + 0.9 * u[:, 1]
    sign = torch.where(u[:, 2] > 0.5, -1.0, 1.0).to(images.dtype)
    on_values = (_autocontrast, _equalize, _posterize, _solarize)
    kinds = len(on_values) + 2  # one kind for all geometric operations, one for no operation
    kind = torch.where(on, number.clamp_max(len(on_values)), kinds - 1)
    order = kind.argsort(stable=True)
    counts = kind.bincount(minlength=kinds).tolist()
    by_kind = list(images.index_select(0, order).split(counts))
    levels = level[order].split(counts)
    for i, operation in enumerate(on_values):
        if counts[i]:
            by_kind[i] = operation(by_kind[i], levels[i])
    if counts[-2]:
        number, sign = (column[order].split(counts)[-2] for column in (number, sign))
        by_kind[-2] = _affine(by_kind[-2], _matrix(number, levels[-2], sign))
    return torch.cat(by_kind).index_select(0, order.argsort())


def _autocontrast(images: Tensor, _: Tensor) -> Tensor:
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    flat = high <= low
    stretched = (images - low) / torch.where(flat, 1, high - low)
    return torch.where(flat, images, stretched)


def _equalize(images: Tensor, _: Tensor) -> Tensor:
    """Pillow's ``ImageOps.equalize``; its backward pass is that of the identity."""
    levels = (images.detach() * 255).round().long().flatten(2)
    counts = torch.zeros(*levels.shape[:2], 256, dtype=torch.long, device=images.device)
    counts.scatter_add_(2, levels, torch.ones_like(levels))
    last = counts.gather(2, levels.amax(dim=2, keepdim=True))
    step = (levels.shape[2] - last) // 255
    below = counts.cumsum(dim=2) - counts
    table = ((below + step // 2) // step.clamp_min(1)).clamp_max(255)
    table = torch.where(step > 0, table, torch.arange(256, device=images.device))
    equal = table.gather(2, levels).view_as(images).to(images.dtype) / 255
    return images + (equal - images.detach())


def _posterize(images: Tensor, _: Tensor) -> Tensor:
    """The four upper bits of each value; the backward pass is that of the identity."""
    upper = (images.detach() * 255).round().div(16).floor() * 16 / 255
    return images + (upper - images.detach())


def _solarize(images: Tensor, level: Tensor) -> Tensor:
    threshold = (256 - (level * 256 / 10).floor()) / 255
    return torch.where(images >= threshold.view(-1, 1, 1, 1), 1 - images, images)


def _matrix(number: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    """(N, 2, 3), of ``F.affine_grid``: rotation, shear in x or y, shift in x or y."""
    angle = sign * (level * 30 / 10).floor() * (number == 4) * math.pi / 180
    shear_x, shear_y = (sign * level * 0.3 / 10 * (number == kind) for kind in (5, 6))
    shift = 2 * sign * (level * (_SIZE / 3) / 10).floor() / _SIZE
    # Pillow's shears do not move the upper left corner, which is at (-1, -1) here
    rows = (
        (angle.cos(), shear_x - angle.sin(), shear_x + shift * (number == 7)),
        (shear_y + angle.sin(), angle.cos(), shear_y + shift * (number == 8)),
    )
    return torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)


def _affine(images: Tensor, matrix: Tensor) -> Tensor:
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)
