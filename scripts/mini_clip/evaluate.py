"""Zero-shot accuracy of the mini CLIP on scikit-learn's digits, clean and attacked.

python scripts/mini_clip/evaluate.py apd/assets/mini_clip.pt
"""

from __future__ import annotations

import argparse
from pathlib import Path

import clip
import numpy as np
import torch
from clip.model import CLIP
from PIL import Image
from sklearn.datasets import load_digits
from tabulate import tabulate

from apd.attacks import ThreatModel, surviving

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
NAMES = "zero one two three four five six seven eight nine".split()
PROMPTS = ["a photo of the digit {}.", "a photo of a {}.", "a handwritten {}."]
SPLITS = {"train": slice(0, 797), "val": slice(797, 997), "test": slice(997, 1797)}


def normalize(images: torch.Tensor) -> torch.Tensor:
    return (images - MEAN) / STD


def digits(split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, 3, 32, 32) images in [0, 1], as read from 8 x 8 PNG files, and (B,) labels."""
    data = load_digits()
    chosen = SPLITS.get(split, slice(None))
    images = []
    for counts in data.images[chosen]:
        png = Image.fromarray(np.round(counts * 255 / 16).astype(np.uint8)).convert("RGB")
        images.append(np.asarray(png.resize((32, 32), Image.BICUBIC), np.float32) / 255)
    images = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    return images.contiguous(), torch.from_numpy(data.target[chosen])


@torch.no_grad()
def zero_shot(model: CLIP, names: list[str], template: str):
    """A function from images in [0, 1] to logits over ``names``."""
    text = model.encode_text(clip.tokenize([template.format(name) for name in names]))
    text = model.logit_scale.exp() * text / text.norm(dim=-1, keepdim=True)

    def logits(images):
        features = model.encode_image(normalize(images))
        return features / features.norm(dim=-1, keepdim=True) @ text.T

    return logits


@torch.no_grad()
def accuracy(model: CLIP, images, labels, names: list[str], template: str) -> float:
    logits = zero_shot(model, names, template)(images)
    return (logits.argmax(-1) == labels).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", type=Path)
    parser.add_argument("--split", default="val", choices=[*SPLITS, "all"])
    parser.add_argument("--eps", type=float, nargs="*", default=[1, 2, 3, 4, 6, 8], help="in 1/255")
    parser.add_argument("--steps", type=int, default=20, help="PGD steps of eps / 4")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    model = clip.model.build_model(torch.load(args.weights, weights_only=True))
    model = model.float().eval().requires_grad_(False)
    images, labels = digits(args.split)
    rows = [
        (template, f"{accuracy(model, images, labels, NAMES, template):.1%}")
        for template in PROMPTS
    ]
    print(tabulate(rows, [f"template ({args.split}, clean)", "zero-shot"]))

    logits = zero_shot(model, NAMES, PROMPTS[0])
    rows = []
    for eps in args.eps:
        threat = ThreatModel("linf", eps, eps / 4, args.steps)
        generator = torch.Generator().manual_seed(0)
        alive = surviving(logits, images, labels, threat, generator=generator)
        rows.append((f"{eps:g}/255", f"{alive.float().mean():.1%}"))
    if rows:
        print(tabulate(rows, ["eps", f"{threat.name} ({args.split})"]))


if __name__ == "__main__":
    main()
