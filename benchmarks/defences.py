"""What test-time defences cost, beside the encoder passes that they cannot do without.

    python benchmarks/defences.py [--backbone mini-photo] [--images 4] [--classes 10] [--rounds 5]

"predict" is a draw of logits, "gradient" one with the gradient for the images, as each step of an
adaptive attack takes it for each of its draws. The bare passes are those of CLIP's encoders alone:

* TTC: f(x), f(x + d_0), STEPS forward and backward, and the last one.
* RTPT: all views; text forward and backward to tune, and forward with the tuned vectors.
* TAPT: all views, forward; the chosen ones forward and backward, with the text, to tune; the image.

Forward and backward together for what a gradient goes through. Where it goes through the tuning
(BACKWARD exact) that is differentiated twice: counted as two forward and two backward passes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from tabulate import tabulate
from torch import Tensor

import apd
from apd.clip import build_prompted_clip, load_clip
from apd.config import default
from apd.host import TRAINER_REGISTRY

PROMPTS = {
    "n_ctx_text": 2,
    "depth_text": 3,
    "ctx_init": "a photo of a",
    "n_ctx_visual": 2,
    "depth_visual": 3,
}


def defence(method: str, clip_model, classes: int, backward: str):
    """The trainer, without data or a host around it, over bimodal prompts."""
    cfg = default()
    trainer = TRAINER_REGISTRY.get(method).__new__(TRAINER_REGISTRY.get(method))
    trainer.cfg, trainer.options = cfg, cfg.TRAINER[trainer.section]
    if method != "TTC":
        trainer.options.BACKWARD = backward
    names = [f"thing number {i}" for i in range(classes)]
    trainer.model = build_prompted_clip(clip_model, names, **PROMPTS).eval()
    trainer.plain, trainer.text = trainer.model, trainer.model.text_features().detach()
    if method == "TAPT":
        trainer.options.LAYER_TO = len(clip_model.visual.transformer.resblocks)
        tokens = len(clip_model.visual.positional_embedding) + PROMPTS["n_ctx_visual"]
        width = clip_model.visual.class_embedding.shape[0]
        zeros = [(torch.zeros(tokens, width),) * 2] * trainer.options.LAYER_TO
        trainer.statistics = [(0.5, zeros), (0.5, zeros)]
    return trainer


def bare(trainer, method: str, images: Tensor, gradient: bool) -> Callable[[], None]:
    """The passes of one draw, on images and prompts alike."""
    o, model, count = trainer.options, trainer.model, len(images)

    def image(number: int, backward: bool) -> None:
        x = images[:1].expand(count * number, -1, -1, -1).detach().requires_grad_(backward)
        with torch.set_grad_enabled(backward):
            features = model.image_features(x)
        if backward:
            torch.autograd.grad(features.sum(), x)

    def text(backward: bool) -> None:
        contexts = trainer.contexts_per_image("text", count)
        with torch.set_grad_enabled(backward):
            features = model.text_features_each(contexts)
        if backward:
            torch.autograd.grad(features.sum(), contexts)

    twice = 2 if gradient and method != "TTC" and trainer.backward == "exact" else 1

    def passes() -> None:
        if method == "TTC":
            image(1, False), image(1, False), image(1, False), image(1, False)
            for _ in range(o.STEPS):
                image(1, True)
            image(1, gradient)
        if method == "RTPT":
            image(o.VIEWS, gradient)
            for _ in range(twice):
                text(True)
            text(gradient and twice == 2)
        if method == "TAPT":
            image(o.VIEWS, False)
            for _ in range(twice):
                image(int(o.VIEWS * o.CONFIDENT), True)
                text(True)
            image(1, gradient)
            text(gradient and twice == 2)

    return passes


def draw(trainer, images: Tensor, gradient: bool) -> Callable[[], None]:
    seeds = torch.arange(len(images))

    def once() -> None:
        x = images.detach().clone().requires_grad_(gradient)
        with torch.set_grad_enabled(gradient):
            logits = trainer.defended(x, seeds)
        if gradient:
            torch.autograd.grad(logits.sum(), x)

    return once


def seconds(*functions: Callable[[], None], rounds: int) -> list[float]:
    """The best of each, in turns, in seconds of the processor that this process had."""
    found = [[] for _ in functions]
    for number in range(rounds + 1):
        for function, times in zip(functions, found):
            began = time.process_time()
            function()
            if number:  # the first time warms up
                times.append(time.process_time() - began)
    return [min(times) for times in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--backbone", default="mini-photo")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    apd.register()
    clip_model = load_clip(args.backbone, "").requires_grad_(False)
    size = clip_model.visual.input_resolution
    images = torch.rand(args.images, 3, size, size, generator=torch.Generator().manual_seed(0))
    rows = []
    for method, backward in (
        ("TTC", "surrogate"),
        *(("RTPT", way) for way in ("surrogate", "exact")),
        *(("TAPT", way) for way in ("surrogate", "exact")),
    ):
        trainer = defence(method, clip_model, args.classes, backward)
        for gradient in (False, True):
            if not gradient and backward == "exact":
                continue  # no gradient goes through anything
            functions = (draw(trainer, images, gradient), bare(trainer, method, images, gradient))
            ours, floor = seconds(*functions, rounds=args.rounds)
            rows.append(
                {
                    "defence": method,
                    "backward": backward if gradient else "-",
                    "what": "gradient" if gradient else "predict",
                    "images/s, one thread": f"{args.images / ours:.2f}",
                    "ours / bare passes": f"{ours / floor:.2f}",
                }
            )
    print(tabulate(rows, "keys", disable_numparse=True))


if __name__ == "__main__":
    main()
