"""Same pixels as a hand-built torchvision pipeline under the same seed."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as T
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from apd.host import HOST, INTERPOLATION_MODES, build_transform, get_cfg_default, set_random_seed

BICUBIC = InterpolationMode.BICUBIC


@pytest.fixture
def image():
    pixels = np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def make_cfg(*names, **options):
    cfg = get_cfg_default()
    cfg.merge_from_list(
        ["INPUT.SIZE", (24, 16), "INPUT.INTERPOLATION", "bicubic", "INPUT.TRANSFORMS", names]
    )
    for key, value in options.items():
        cfg.INPUT[key] = value
    return cfg


def same_pixels(transform, expected, image, seeds=range(6)):
    for seed in seeds:
        set_random_seed(seed)
        first = transform(image)
        set_random_seed(seed)
        assert torch.equal(first, expected(image)), f"seed {seed}"
    return True


def test_interpolation_names():
    assert INTERPOLATION_MODES == {
        "bilinear": InterpolationMode.BILINEAR,
        "bicubic": InterpolationMode.BICUBIC,
        "nearest": InterpolationMode.NEAREST,
    }


def test_training_without_a_crop_stretches_to_the_size(image):
    transform = build_transform(make_cfg("random_flip"), is_train=True)
    expected = T.Compose([T.Resize((24, 16), BICUBIC), T.RandomHorizontalFlip(), T.ToTensor()])
    assert same_pixels(transform, expected, image)
    assert transform(image).shape == (3, 24, 16)


def test_coops_augmentations(image):
    cfg = make_cfg("normalize", "random_flip", "random_resized_crop", RRCROP_SCALE=(0.3, 0.9))
    expected = T.Compose(
        [  # the order is the toolbox's, not that of the list
            T.RandomResizedCrop((24, 16), scale=(0.3, 0.9), interpolation=BICUBIC),
            T.RandomHorizontalFlip(),
            T.ToTensor(),
            T.Normalize(cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD),
        ]
    )
    assert same_pixels(build_transform(cfg, is_train=True), expected, image)


def test_testing_resizes_the_smaller_edge_and_crops_the_centre(image):
    cfg = make_cfg("random_resized_crop", "random_flip", "cutout", "normalize")
    expected = T.Compose(
        [
            T.Resize(24, BICUBIC),
            T.CenterCrop((24, 16)),
            T.ToTensor(),
            T.Normalize(cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD),
        ]
    )
    assert same_pixels(build_transform(cfg, is_train=False), expected, image)


def test_random_crop_pads_and_does_not_resize(image):
    expected = T.Compose([T.RandomCrop((24, 16), padding=4), T.ToTensor()])
    assert same_pixels(build_transform(make_cfg("random_crop")), expected, image)


def test_photometric_augmentations_in_their_order(image):
    cfg = make_cfg("gaussian_blur", "randomgrayscale", "colorjitter", GB_K=5, RGS_P=0.5)
    expected = T.Compose(
        [
            T.Resize((24, 16), BICUBIC),
            T.ColorJitter(0.4, 0.4, 0.4, 0.1),
            T.RandomGrayscale(0.5),
            T.RandomApply([T.GaussianBlur(5)], 0.5),
            T.ToTensor(),
        ]
    )
    assert same_pixels(build_transform(cfg), expected, image)


def test_random_translation_enlarges_by_an_eighth(image):
    def expected(image):
        image = F.resize(image, [24, 16], BICUBIC)
        if random.uniform(0, 1) > 0.5:
            return F.to_tensor(F.resize(image, [24, 16]))
        left = int(round(random.uniform(0, 18 - 16)))
        top = int(round(random.uniform(0, 27 - 24)))
        return F.to_tensor(F.crop(F.resize(image, [27, 18]), top, left, 24, 16))

    assert same_pixels(build_transform(make_cfg("random_translation")), expected, image)


def test_cutout_zeroes_squares_that_edges_may_cut(image):
    def expected(image):
        pixels = F.to_tensor(F.resize(image, [24, 16], BICUBIC))
        for _ in range(2):
            y, x = np.random.randint(24), np.random.randint(16)
            pixels[:, max(y - 3, 0) : y + 3, max(x - 3, 0) : x + 3] = 0
        return pixels

    cfg = make_cfg("cutout", CUTOUT_N=2, CUTOUT_LEN=6)
    assert same_pixels(build_transform(cfg), expected, image)


def test_gaussian_noise_comes_half_of_the_time(image):
    def expected(image):
        pixels = F.to_tensor(F.resize(image, [24, 16], BICUBIC))
        if random.uniform(0, 1) > 0.5:
            return pixels
        return pixels + torch.randn(pixels.shape) * 0.15 + 0.0

    assert same_pixels(build_transform(make_cfg("gaussian_noise")), expected, image)


@pytest.mark.parametrize("is_train", [True, False])
def test_instance_norm(image, is_train):
    normalised = build_transform(make_cfg("instance_norm"), is_train=is_train)(image)
    assert torch.allclose(normalised.mean((1, 2)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(normalised.std((1, 2)), torch.ones(3), atol=1e-5)


def test_center_crop_is_accepted_and_changes_nothing(image):
    with_it, without = (build_transform(make_cfg(*names)) for names in [("center_crop",), ()])
    assert torch.equal(with_it(image), without(image))


def test_choices_take_the_place_of_the_configs(image):
    cfg = make_cfg("normalize")
    assert build_transform(cfg, choices=["random_flip"])(image).min() >= 0


def test_no_transform_is_none():
    assert build_transform(make_cfg(NO_TRANSFORM=True)) is None


def test_unknown_augmentation_is_refused():
    with pytest.raises((AssertionError, ValueError)):
        build_transform(make_cfg("random_flop"))


@pytest.mark.skipif(HOST == "dassl", reason="upstream has them (np.int fails in some)")
@pytest.mark.parametrize("name", ["imagenet_policy", "randaugment", "randaugment_fixmatch"])
def test_searched_policies_are_refused_by_name(name):
    from apd.errors import UserError

    with pytest.raises(UserError, match=f"{name} needs upstream Dassl"):
        build_transform(make_cfg(name))
