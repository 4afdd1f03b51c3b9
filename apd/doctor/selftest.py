"""The checks of ``--attack``: do attacks on the mini CLIP work on this device?"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from apd.attacks import ThreatModel, pgd
from apd.attacks.gradient import image_gradient
from apd.clip import PromptedCLIP, build_prompted_clip, load_clip

THREAT = ThreatModel("linf", 4, 1, 20)
NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
COUNT = 8  # images


class Check(NamedTuple):
    """A property that must hold.

    Attributes:
        name: the property in words.
        good: whether it holds.
        measured: the values that decided, in words.
    """

    name: str
    good: bool
    measured: str


def self_test(device: str) -> Iterator[Check]:
    """Checks of attacks on ``device``, with random images of a fixed seed; about ten seconds."""
    draw = torch.Generator().manual_seed(0)
    reference = build_prompted_clip(load_clip("mini"), NAMES, n_ctx_text=2, n_ctx_visual=2)
    size = reference.clip.visual.input_resolution
    images = torch.rand(COUNT, 3, size, size, generator=draw)
    noise = torch.rand(images.shape, generator=draw) * 2 - 1
    start = (images + noise * THREAT.eps / 255).clamp(0, 1)
    model = copy.deepcopy(reference).to(device)
    labels = reference(images).argmax(1)
    on_device = images.to(device), labels.to(device)
    yield _gradients_flow(model, *on_device)
    yield _ball_and_box(model, *on_device, start.to(device))
    yield _plain_loop(copy.deepcopy(reference).double(), images.double(), labels, start.double())
    if torch.device(device).type != "cpu":
        yield _devices_agree(reference, model, images, labels)
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        yield _half(name, dtype, model, *on_device)


def gradients(logits_fn: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor) -> Tensor:
    """The gradients of each image's cross-entropy for the image, as attacks compute them."""
    images = images.detach().clone().requires_grad_()
    logits = logits_fn(images)
    weights = logits.detach().float().softmax(1) - F.one_hot(labels, logits.shape[1])
    return image_gradient(logits, images, weights)


def _lost(gradient: Tensor) -> int:
    """How many images have a gradient that is all zeros or not finite."""
    flat = gradient.flatten(1)
    return int((~(flat.isfinite().all(1) & flat.any(1))).sum())


def _gradients_flow(model: PromptedCLIP, images: Tensor, labels: Tensor) -> Check:
    lost = _lost(gradients(model.classifier(), images, labels))
    F.cross_entropy(model(images), labels).backward()
    prompts = list(model.prompt_learner.parameters())
    still = sum(p.grad is None or not p.grad.isfinite().all() or not p.grad.any() for p in prompts)
    model.zero_grad()
    measured = f"{lost} of {len(images)} images and {still} of {len(prompts)} prompts without"
    return Check("gradients flow to images and prompts", not (lost or still), measured)


@torch.no_grad()
def _ball_and_box(model: PromptedCLIP, images: Tensor, labels: Tensor, start: Tensor) -> Check:
    classify = model.classifier()
    attacked = pgd(classify, images, labels, THREAT, start=start)
    far = (attacked - images).abs().max().item() * 255
    inside = 0 <= attacked.min() and attacked.max() <= 1
    rises = F.cross_entropy(classify(attacked), labels) > F.cross_entropy(classify(images), labels)
    measured = f"moved by {far:.3f}/255 of {THREAT.eps}/255, {'in' if inside else 'NOT in'} [0, 1]"
    measured += "" if rises else ", and the loss does not rise"
    return Check("ball and box hold", bool(far < THREAT.eps + 1e-3 and inside and rises), measured)


@torch.no_grad()
def _plain_loop(model: PromptedCLIP, images: Tensor, labels: Tensor, start: Tensor) -> Check:
    """PGD against a plain loop, in float64 on the CPU, where rounding does not matter."""
    classify = model.classifier()
    ours = pgd(classify, images, labels, THREAT, start=start)
    eps, alpha, x = THREAT.eps / 255, THREAT.alpha / 255, start
    for _ in range(THREAT.steps):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(F.cross_entropy(classify(x), labels), x)
        x = x.detach() + alpha * gradient.sign()
        x = (images + (x - images).clamp(-eps, eps)).clamp(0, 1)
    worst = (ours - x).abs().max().item()
    return Check(f"PGD-{THREAT.steps} is a plain float64 loop", worst < 1e-9, f"{worst:.0e} apart")


def _devices_agree(
    reference: PromptedCLIP, model: PromptedCLIP, images: Tensor, labels: Tensor
) -> Check:
    device = model.mean.device
    with torch.no_grad():
        distance = (reference(images) - model(images.to(device)).cpu()).abs().max().item()
    on_cpu = gradients(reference.classifier(), images, labels)
    on_device = gradients(model.classifier(), images.to(device), labels.to(device)).cpu()
    alike = (on_cpu.sign() == on_device.sign()).float().mean().item()
    measured = f"logits {distance:.0e} apart, {alike:.2%} of the gradients' signs alike"
    return Check(f"CPU and {device.type} agree", distance < 0.05 and alike > 0.97, measured)


def _half(name: str, dtype: torch.dtype, model: PromptedCLIP, images: Tensor, labels: Tensor):
    """Half precision, with labels that the model is sure of: these have the smallest gradients."""
    classify, device = model.classifier(), images.device.type
    whole = gradients(lambda x: 4 * classify(x), images, labels)
    try:
        with torch.autocast(device, dtype=dtype):
            half = gradients(lambda x: 4 * classify(x), images, labels)
    except (RuntimeError, ValueError) as error:
        return Check(f"{name} loses no gradients", False, f"this device cannot: {error}")
    lost = _lost(half)
    cosine = F.cosine_similarity(whole.flatten(1), half.float().flatten(1)).min().item()
    measured = f"{lost} of {len(images)} lost, cosine to float32 at least {cosine:.3f}"
    return Check(f"{name} loses no gradients", not lost and cosine > 0.9, measured)
