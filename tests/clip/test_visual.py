"""The image encoder with prompts against a plain float64 one."""

import plain_clip
import pytest
import torch
from plain_clip import assert_same

from apd.clip import encode_image
from apd.errors import UserError


def random_contexts(visual, n_ctx, depth):
    generator = torch.Generator().manual_seed(0)
    width = visual.class_embedding.shape[0]
    draw = torch.randn(depth, n_ctx, width, generator=generator, dtype=torch.float64)
    return list(draw.mul(0.3).to(visual.class_embedding.dtype))


def random_images(visual, batch=3):
    size = visual.input_resolution
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, size, size, generator=generator, dtype=torch.float64)


def features_and_gradients(encode, images, contexts):
    """Features and the gradients of their weighted sum w.r.t. images and each context."""
    inputs = [tensor.clone().requires_grad_() for tensor in (images, *contexts)]
    features = encode(inputs[0], inputs[1:])
    weights = torch.randn(features.shape, generator=torch.Generator().manual_seed(7))
    return [features.detach(), *torch.autograd.grad((features * weights).sum(), inputs)]


def test_the_reference_is_clips_own_image_encoder(vit, vit64):
    images = random_images(vit.visual)
    want = vit.encode_image(images.float())
    assert_same(plain_clip.image_features(vit64.visual, images, []).float(), want, 1e-5)


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
@pytest.mark.parametrize("n_ctx", [1, 2, 4])
def test_equals_the_plain_encoder(vit64, n_ctx, depth):
    visual = vit64.visual
    images, contexts = random_images(visual), random_contexts(visual, n_ctx, depth)
    got = features_and_gradients(lambda x, c: encode_image(visual, x, c), images, contexts)
    want = features_and_gradients(
        lambda x, c: plain_clip.image_features(visual, x, c), images, contexts
    )
    for a, b in zip(got, want, strict=True):
        assert_same(a, b, 1e-10)


def test_equals_the_plain_encoder_in_float32(vit, vit64):
    images, contexts = random_images(vit.visual), random_contexts(vit.visual, 2, 3)
    got = features_and_gradients(
        lambda x, c: encode_image(vit.visual, x, c), images.float(), contexts
    )
    want = features_and_gradients(
        lambda x, c: plain_clip.image_features(vit64.visual, x, c),
        images,
        [context.double() for context in contexts],
    )
    for a, b in zip(got, want, strict=True):
        assert_same(a, b, 1e-5)


def test_prompts_on_a_resnet_are_refused(resnet):
    context = torch.zeros(2, 128)
    with pytest.raises(UserError, match="need a ViT backbone, this one is a ResNet"):
        encode_image(resnet.visual, random_images(resnet.visual), [context])
