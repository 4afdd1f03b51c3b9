"""Characters rendered from fonts the way the digits of ``sklearn.datasets.load_digits`` were made.

Those are NIST forms: pen strokes, cut out, stretched to a box of 20 x 32 pixels, thickened or
thinned to a common amount of ink, centred in a 32 x 32 bitmap whose 4 x 4 blocks are counted to
8 x 8 values of 0..16. Here a font's glyph takes the place of the pen's trace. Each glyph is kept as
two distance fields, to its outline and to its skeleton (a pen of any width), so that warping it and
changing its stroke width is one ``grid_sample`` and one threshold for a whole batch.
"""

from __future__ import annotations

import string
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage
from tqdm import tqdm

GLYPHS = string.digits + string.ascii_lowercase + string.ascii_uppercase
CANVAS, BODY = 64, 40  # a field's side, and the side of the box its glyph fits in


@dataclass
class GlyphSet:
    """Distance fields of every usable font's glyphs.

    Attributes:
        outline: (fonts, 62, 64, 64) float16, pixels to the outline, negative inside.
        skeleton: (fonts, 62, 64, 64) float16, pixels to the skeleton.
        families: each font's family name.
    """

    outline: torch.Tensor
    skeleton: torch.Tensor
    families: list[str]

    def __len__(self) -> int:
        return len(self.families)

    def subset(self, keep: list[int]) -> GlyphSet:
        families = [self.families[i] for i in keep]
        return GlyphSet(self.outline[keep], self.skeleton[keep], families)


def load_glyphs(progress: bool = True) -> GlyphSet:
    """Render every font found, less those without Latin glyphs, pictograms and duplicates."""
    masks, thumbnails, families, seen = [], [], [], set()
    paths = sorted(set(font_manager.findSystemFonts()))
    for path in tqdm(paths, "fonts", disable=not progress):
        if (rendered := _render_font(path)) is None:
            continue
        glyphs, thumbnail = rendered
        if (digest := glyphs[:10].tobytes()) in seen:
            continue
        seen.add(digest)
        masks.append(glyphs)
        thumbnails.append(thumbnail)
        families.append(font_manager.get_font(path).family_name)
    masks = np.stack(masks)
    readable = _readable(np.stack(thumbnails))
    masks = masks[readable]
    families = [f for f, ok in zip(families, readable, strict=True) if ok]
    flat = masks.reshape(-1, CANVAS, CANVAS)
    thin = skeletonize(flat)
    shape = (*masks.shape[:2], CANVAS, CANVAS)
    return GlyphSet(_signed_distance(flat).view(shape), _distance(~thin).view(shape), families)


def _render_font(path: str) -> tuple[np.ndarray, np.ndarray] | None:
    """The 62 glyphs of a font, or None if one is missing.

    Returns:
        (62, 64, 64) bool, each glyph's larger side scaled to ``BODY``, and (10, 64) float32, the
        digits' ink stretched to 8 x 8.
    """
    try:
        font = ImageFont.truetype(path, 96)
        missing = _ink(font, "\U0010fffd")
        glyphs = [_ink(font, character) for character in GLYPHS]
    except (OSError, ValueError):
        return None
    out = np.zeros((len(GLYPHS), CANVAS, CANVAS), bool)
    for slot, glyph in zip(out, glyphs, strict=True):
        if glyph is None or (missing is not None and np.array_equal(glyph, missing)):
            return None
        height, width = glyph.shape
        scale = BODY / max(height, width)
        size = max(1, round(width * scale)), max(1, round(height * scale))
        small = np.asarray(Image.fromarray(glyph).resize(size, Image.BOX)) > 90
        top, left = (CANVAS - size[1]) // 2, (CANVAS - size[0]) // 2
        slot[top : top + size[1], left : left + size[0]] = small
        if not slot.any():
            return None
    digits = [Image.fromarray(glyph).resize((8, 8), Image.BOX) for glyph in glyphs[:10]]
    return out, np.stack([np.asarray(d, np.float32).ravel() for d in digits])


def _ink(font: ImageFont.FreeTypeFont, character: str) -> np.ndarray | None:
    image = Image.new("L", (288, 288))
    ImageDraw.Draw(image).text((96, 64), character, fill=255, font=font)
    box = image.getbbox()
    return np.asarray(image.crop(box)) if box else None


def _readable(thumbnails: np.ndarray) -> np.ndarray:
    """Fonts most of whose digits look more like their own average than like another digit's."""
    digits = torch.from_numpy(thumbnails)
    digits = F.normalize(digits - digits.mean(-1, keepdim=True), dim=-1)
    keep = torch.ones(len(digits), dtype=torch.bool)
    for _ in range(3):
        means = F.normalize(digits[keep].mean(0), dim=-1)
        guess = (digits @ means.T).argmax(-1)
        keep = (guess == torch.arange(10)).float().mean(1) >= 0.7
    return keep.numpy()


def _distance(mask: np.ndarray) -> torch.Tensor:
    out = np.empty(mask.shape, np.float16)
    for i, m in enumerate(mask):
        out[i] = ndimage.distance_transform_edt(m)
    return torch.from_numpy(out)


def _signed_distance(mask: np.ndarray) -> torch.Tensor:
    return _distance(~mask) - _distance(mask)


def skeletonize(mask: np.ndarray) -> np.ndarray:
    """Thin (N, H, W) bool images to lines (Zhang and Suen 1984), all at once."""
    neighbours = [(-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1)]
    codes = np.arange(256)[:, None] >> np.arange(8) & 1  # code -> p2..p9
    crossings = ((codes == 0) & (np.roll(codes, -1, 1) == 1)).sum(1)
    candidate = (crossings == 1) & (codes.sum(1) >= 2) & (codes.sum(1) <= 6)
    p2, p4, p6, p8 = codes[:, 0::2].T
    tables = [
        candidate & (p2 * p4 * p6 == 0) & (p4 * p6 * p8 == 0),
        candidate & (p2 * p4 * p8 == 0) & (p2 * p6 * p8 == 0),
    ]
    out = mask.copy()
    active = np.arange(len(mask))
    while len(active):
        image = out[active].astype(np.uint8)
        before = image.sum((1, 2), dtype=np.int64)
        for table in tables:
            code = np.zeros_like(image)
            for bit, (dy, dx) in enumerate(neighbours):
                # the canvas has an empty margin, so wrapping around is harmless
                code |= np.roll(image, (-dy, -dx), (1, 2)) << bit
            image &= ~table[code]
        out[active] = image.astype(bool)
        active = active[image.sum((1, 2), dtype=np.int64) < before]
    return out


def render(
    glyphs: GlyphSet, fonts: torch.Tensor, characters: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Draw one random variant of each glyph.

    Args:
        fonts: (B,) indices into ``glyphs``.
        characters: (B,) indices into ``GLYPHS``.

    Returns:
        (B, 8, 8) float, ink counts 0..16.
    """
    n = len(fonts)

    def uniform(low, high, *shape):
        return torch.rand(n, *shape, generator=generator) * (high - low) + low

    pen = uniform(0, 1) < 0.6
    outline, skeleton = glyphs.outline[fonts, characters], glyphs.skeleton[fonts, characters]
    field = torch.where(pen[:, None, None], skeleton, outline).float()
    field = _cross(field, characters, pen, generator)

    # warp: rotation, shear and a smooth random displacement
    turn, shear = uniform(-0.25, 0.25), uniform(-0.35, 0.35)
    row_x = torch.stack([turn.cos(), -turn.sin() + shear], -1)
    row_y = torch.stack([turn.sin(), turn.cos()], -1)
    grid = _grid(CANVAS) @ torch.stack([row_x, row_y], -1)[:, None]
    bend = torch.randn(n, 2, 5, 5, generator=generator) * uniform(0.02, 0.09, 1, 1, 1)
    bend = F.interpolate(bend, (CANVAS, CANVAS), mode="bicubic", align_corners=True)
    grid = grid + bend.permute(0, 2, 3, 1)
    field = F.grid_sample(field[:, None], grid, padding_mode="border", align_corners=False)[:, 0]

    # Choose the stroke width (field < t) that gives the wanted ink once the glyph fills its box.
    steps = torch.linspace(0, 1, 12)
    width = torch.where(pen[:, None], 0.8 + 8 * steps, -3 + 8 * steps)
    left, right = _extent(field.amin(1)[:, None] < width[:, :, None])
    top, bottom = _extent(field.amin(2)[:, None] < width[:, :, None])
    mask = field[:, None, ::2, ::2] < width[:, :, None, None]
    box_w, box_h = uniform(17, 22, 1), uniform(30, 32.5, 1)
    scale_y = box_h / (bottom - top)
    scale_x = torch.minimum(box_w / (right - left), uniform(1.2, 2.2, 1) * scale_y)
    ink = 4 * mask.float().sum((2, 3)) * scale_x * scale_y
    target = 315 + 40 * torch.randn(n, 1, generator=generator)
    chosen = (ink - target).abs().argmin(1, keepdim=True)

    def pick(value):
        return value.gather(1, chosen)

    centre = torch.stack([pick(left + right), pick(top + bottom)], -1) / CANVAS - 1
    scale = torch.stack([pick(scale_x), pick(scale_y)], -1) * (CANVAS / 32)
    shift = torch.stack([uniform(-1.5, 1.5, 1), uniform(-0.5, 0.5, 1)], -1) / 16
    grid = (_grid(32) - shift[:, None]) / scale[:, None] + centre[:, None]
    field = F.grid_sample(field[:, None], grid, padding_mode="border", align_corners=False)
    bitmap = (field < pick(width)[:, :, None, None]).float()
    return F.avg_pool2d(bitmap, 4)[:, 0] * 16


def _grid(side: int) -> torch.Tensor:
    """(1, side, side, 2) pixel centres (x, y) in grid_sample's [-1, 1]."""
    line = (torch.arange(side) * 2 + 1) / side - 1
    y, x = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([x, y], -1)[None]


def _extent(used: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """First and one-past-last True along the last axis, as floats."""
    size = used.shape[-1]
    first = used.float().argmax(-1)
    last = size - used.flip(-1).float().argmax(-1)
    return first.float(), last.float()


def _cross(field, characters, pen, generator):
    """Give half of the pen-drawn sevens (and a few z) the bar that continental hands add."""
    chance = torch.zeros(len(GLYPHS))
    chance[[GLYPHS.index(c) for c in "7zZ"]] = torch.tensor([0.5, 0.2, 0.2])
    n = len(characters)
    crossed = pen & (torch.rand(n, generator=generator) < chance[characters])
    if not crossed.any():
        return field
    x, y = ((_grid(CANVAS)[0] + 1) * CANVAS / 2).unbind(-1)
    rand = torch.rand(5, n, 1, 1, generator=generator)
    middle_x, middle_y = CANVAS / 2 + 6 * (rand[0] - 0.4), CANVAS / 2 + 8 * (rand[1] - 0.5)
    half, slope = 6 + 6 * rand[2], 0.5 * (rand[3] - 0.7)
    along = (x - middle_x).clamp(-half, half)
    bar = ((x - middle_x - along) ** 2 + (y - middle_y - slope * along) ** 2).sqrt()
    return torch.where(crossed[:, None, None], torch.minimum(field, bar), field)


def to_images(counts: torch.Tensor) -> torch.Tensor:
    """(B, 8, 8) counts 0..16 -> (B, 3, 32, 32) in [0, 1]: an 8-bit PNG, PIL's bicubic resize."""
    gray = (counts * 255 / 16).round().to(torch.uint8)[:, None]
    large = F.interpolate(gray, (32, 32), mode="bicubic", antialias=True)
    return (large.float() / 255).expand(-1, 3, -1, -1)
