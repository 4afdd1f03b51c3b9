"""Random views: crops as F.interpolate resizes them, operations as Pillow has them."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps

from apd import views

SIZE = 32


@pytest.fixture
def image():
    """(1, 3, 32, 32) in float64, of 8 bits, smooth enough for geometry."""
    generator = torch.Generator().manual_seed(0)
    small = torch.rand(1, 3, 8, 8, generator=generator, dtype=torch.float64)
    smooth = F.interpolate(small, size=(SIZE, SIZE), mode="bilinear")
    return (smooth * 255).round() / 255


def pil(image):
    pixels = (image[0] * 255).round().permute(1, 2, 0).numpy().astype(np.uint8)
    return Image.fromarray(pixels)


def back(picture):
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].double() / 255


@pytest.mark.parametrize("box", [(0, 0, 32, 32), (3, 7, 20, 11), (31, 0, 1, 5), (2, 20, 9, 12)])
def test_a_crop_is_resized_as_interpolate_does(image, box):
    top, left, height, width = map(torch.tensor, box)
    rows = views._bilinear(top[None].double(), height[None].double(), SIZE)
    columns = views._bilinear(left[None].double(), width[None].double(), SIZE)
    crop = image[..., top : top + height, left : left + width]
    want = F.interpolate(crop, size=(SIZE, SIZE), mode="bilinear")
    torch.testing.assert_close(rows[:, None] @ image @ columns[:, None].mT, want)


def test_crops_have_the_areas_and_ratios_that_are_drawn():
    ramp = torch.linspace(0, 1, SIZE, dtype=torch.float64)
    x = torch.stack(
        [ramp.expand(SIZE, SIZE), ramp.expand(SIZE, SIZE).T, 0 * ramp.expand(SIZE, SIZE)]
    )
    crops = views.random_views(x[None], torch.tensor([3]), 2000, augmix=False)[0, 1:]
    # how much of the ramps is in the crop says how wide and high it is
    spans = [c.flatten(1).amax(1) - c.flatten(1).amin(1) for c in (crops[:, 0], crops[:, 1])]
    width, height = (1 + (SIZE - 1) * span for span in spans)
    area, ratio = width * height / SIZE**2, (width / height).log()
    assert area.min() > 0.06 and area.max() <= 1
    assert abs(area.mean() - 0.5) < 0.05  # uniform from 0.08 to 1, fewer of the large ones fit
    assert ratio.abs().max() < np.log(4 / 3) + 0.3 and abs(ratio.mean()) < 0.02
    mirrored = crops[:, 0, 0, 0] > crops[:, 0, 0, -1]
    assert 0.46 < mirrored.double().mean() < 0.54


def test_views_are_functions_of_image_and_seed(image):
    other = 1 - image
    seeds = torch.tensor([7, 8])
    both = views.random_views(torch.cat([image, other]), seeds, 6, augmix=True)
    assert both.shape == (2, 6, 3, SIZE, SIZE)
    assert torch.equal(both[:, 0], torch.cat([image, other]))
    torch.testing.assert_close(both[1:], views.random_views(other, seeds[1:], 6, augmix=True))
    again = views.random_views(image, seeds[1:], 6, augmix=True)
    assert not torch.allclose(both[:1, 1:], again[:, 1:])
    assert 0 <= both.min() and both.max() <= 1


@pytest.mark.parametrize(
    "ours, theirs",
    [
        (views._autocontrast, ImageOps.autocontrast),
        (views._equalize, ImageOps.equalize),
        (views._posterize, lambda picture: ImageOps.posterize(picture, 4)),
        (views._solarize, lambda picture: ImageOps.solarize(picture, 256 - 20)),
    ],
)
def test_operations_on_values_are_pillows(image, ours, theirs):
    level = torch.tensor([0.8], dtype=torch.float64)  # int(0.8 * 256 / 10) = 20
    image = (image * 255).clone() / 255
    image[0, :, 0, 0], image[0, :, 0, 1] = 240 / 255, 236 / 255
    found, wanted = ours(image, level), back(theirs(pil(image)))
    # Pillow rounds down to 8 bits
    assert (found - wanted).abs().max() < 1.001 / 255
    if ours is not views._autocontrast:
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("which", range(4, 9))
def test_operations_on_places_are_pillows(image, which, sign):
    level = 0.9
    shift = int(level * (224 / 3) / 10) * sign  # of 224 pixels
    picture = pil(image)
    matrices = {
        5: (1, level * 0.3 / 10 * sign, 0, 0, 1, 0),
        6: (1, 0, 0, level * 0.3 / 10 * sign, 1, 0),
        7: (1, 0, shift * SIZE / 224, 0, 1, 0),
        8: (1, 0, 0, 0, 1, shift * SIZE / 224),
    }
    if which == 4:
        degrees = int(level * 30 / 10) * sign
        wanted = picture.rotate(degrees, resample=Image.BILINEAR)
    else:
        bilinear = Image.Resampling.BILINEAR
        wanted = picture.transform((SIZE, SIZE), Image.AFFINE, matrices[which], resample=bilinear)
    one = torch.ones(1, dtype=torch.float64)
    matrix = views._matrix(which * one, level * one, sign * one)
    found, inside = views._affine(image, matrix), slice(4, -4)
    error = (found - back(wanted))[..., inside, inside].abs().max()
    assert error < 1.5 / 255
    moved = (image - back(wanted))[..., inside, inside].abs().max()
    assert moved > 5 / 255  # or the test could not fail


def test_gradients_go_through_views(image):
    seeds = torch.tensor([3])
    x = image.clone().requires_grad_()
    direction = torch.randn(image.shape, generator=torch.Generator().manual_seed(1)).double()
    weights = torch.randn(1, 20, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))

    def value(x):
        return (views.random_views(x, seeds, 20, augmix=False) * weights).sum()

    (gradient,) = torch.autograd.grad(value(x), x)
    step = 1e-6 * direction
    slope = (value(image + step) - value(image - step)) / 2
    torch.testing.assert_close(slope, (gradient * step).sum(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("operation", [views._equalize, views._posterize])
def test_steps_of_no_derivative_have_the_identitys(image, operation):
    x = image.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(operation(x, None).sum(), x)
    assert torch.equal(gradient, torch.ones_like(x))
