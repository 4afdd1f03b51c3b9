"""Pretrain the mini CLIP of photographs: OpenAI's architecture, tokenizer and loss.

    python scripts/mini_clip/photos.py ZIPS DATA
    python scripts/mini_clip/pretrain_photos.py DATA --out apd/assets/mini_photo.pt

It reads ``DATA/<set>/pretrain`` and nothing else. Killed, the same line goes on from its last
epoch (``<out>.resume``).
"""

from __future__ import annotations

import argparse
import math
import random
import sys
from pathlib import Path

import clip
import numpy as np
import torch
import torch.nn.functional as F
from clip.model import CLIP
from evaluate import normalize
from photos import PRETRAIN
from PIL import Image
from pretrain import CONTEXT, GEOMETRY, crop_context, learn, optimisation, save_half
from torch import Tensor, nn
from tqdm import tqdm
from words import templates, words

from apd.errors import UserError, exit_codes
from apd.files import write_tensors

REPEAT = 2  # of the small sets' images in an epoch
LARGE = ("tiny_imagenet", "cifar10")
UPRIGHT = ("gtsrb",)  # mirrored, its signs mean something else


class Photographs:
    """All images for pretraining, in memory.

    Attributes:
        images: (N, 3, 32, 32) uint8.
        classes: (N,) indices into ``fits`` and ``own``.
        words: what captions may be about.
        fits: (classes, words) bool, the words that name a class.
        chance: (classes, words), weights to draw a caption's word by: the class's own name in half
            of them, or in all if there is no word above it.
        mirrored: (classes,) bool, whether an image may be turned left to right.
        epoch: indices of one epoch's images, unshuffled.
    """

    def __init__(self, data: Path) -> None:
        images, classes, repeats, named, mirrored = [], [], [], [], []
        self.words, self.templates = [], {}
        for name in PRETRAIN:
            folder = data / name / "pretrain"
            if not PRETRAIN[name]:
                continue
            if not folder.is_dir():
                raise UserError(f"there is no {folder}: make it with scripts/mini_clip/photos.py")
            for label in tqdm(sorted(folder.iterdir()), name, leave=False):
                own = words(name, label.name)
                for word in own:
                    if word not in self.templates:
                        self.words.append(word)
                        self.templates[word] = templates(name)
                files = sorted(label.iterdir())
                images += [np.asarray(Image.open(file).convert("RGB")) for file in files]
                classes += [len(named)] * len(files)
                repeats += [1 if name in LARGE else REPEAT] * len(files)
                named.append(own)
                mirrored.append(name not in UPRIGHT)
        self.images = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
        self.classes = torch.tensor(classes)
        self.epoch = torch.arange(len(images)).repeat_interleave(torch.tensor(repeats))
        self.mirrored = torch.tensor(mirrored)
        self.fits = torch.tensor([[word in own for word in self.words] for own in named])
        name = torch.tensor([self.words.index(own[0]) for own in named])[:, None]
        above = self.fits.scatter(1, name, False)
        self.chance = (above / above.sum(1, keepdim=True).clamp(min=1)).scatter(1, name, 1.0)

    def caption(self, word: int) -> str:
        name = self.words[word]
        return random.choice(self.templates[name]).format(name.split(":")[-1])

    def batches(self, size: int) -> Tensor:
        """(number, size) indices: one epoch's images in random order, less what fills no batch."""
        order = self.epoch[torch.randperm(len(self.epoch))]
        return order[: len(order) // size * size].view(-1, size)

    def tokens_in_use(self) -> Tensor:
        """Sorted ids of all tokens that a caption can have."""
        captions = [t.format(w.split(":")[-1]) for w in self.words for t in self.templates[w]]
        return clip.tokenize(captions).unique()


def augment(images: Tensor, mirrored: Tensor) -> Tensor:
    """Shifted by up to 4 pixels, half of those that may be mirrored; (B, 3, 32, 32) in [0, 1]."""
    n, _, height, width = images.shape
    padded = F.pad(images.float(), (4, 4, 4, 4), mode="reflect")
    rows = torch.randint(9, (n, 1)) + torch.arange(height)
    columns = torch.randint(9, (n, 1)) + torch.arange(width)
    flip = mirrored & (torch.rand(n) < 0.5)
    columns = torch.where(flip[:, None], columns.flip(1), columns)
    each = torch.arange(n)[:, None, None]
    return (
        padded.permute(0, 2, 3, 1)[each, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)
        / 255
    )


def contrastive_loss(image: Tensor, text: Tensor, target: Tensor, fits: Tensor, scale: Tensor):
    """CLIP's symmetric InfoNCE, each caption once, without false negatives.

    Args:
        image: (B, d) features; ``text``: (U, d), of the batch's distinct captions.
        target: (B,) which caption is the image's.
        fits: (B, U) bool, which captions would be true of it too.
    """
    logits = scale * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
    own = F.one_hot(target, len(text)).bool()
    image_to_text = F.cross_entropy(logits.masked_fill(fits & ~own, -math.inf), target)
    truth = fits / fits.sum(0)
    text_to_image = -(truth * logits.log_softmax(0)).sum(0).mean()
    return (image_to_text + text_to_image) / 2


def train(model: CLIP, data: Photographs, args) -> None:
    used = data.tokens_in_use()
    rows = nn.Embedding(len(used), model.token_embedding.embedding_dim)
    rows.weight.data = model.token_embedding.weight.data[used].clone()
    whole, positions = model.token_embedding, model.positional_embedding.data.clone()
    model.token_embedding = rows
    crop_context(model, CONTEXT)

    steps = args.epochs * (len(data.epoch) // args.batch)
    optimizer, schedule = optimisation(model, steps, args.lr, weight_decay=0.05)
    resume = args.out.with_name(args.out.name + ".resume")
    first = 0
    if resume.exists():
        state = torch.load(resume, weights_only=True)
        if state["seed"] != args.seed or state["steps"] != steps:
            raise UserError(f"{resume} is of other settings: delete it to begin anew")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        first = state["epoch"]

    encode_image = torch.compile(model.visual) if args.compile else model.visual
    for epoch in range(first, args.epochs):
        # an epoch's draws depend on the seed and its number only: a killed run goes on as it was
        torch.manual_seed(args.seed * 1000 + epoch)
        random.seed(args.seed * 1000 + epoch)
        batches = data.batches(args.batch)
        bar = tqdm(batches, f"epoch {epoch + 1}/{args.epochs}", mininterval=10)
        total = 0.0
        for batch in bar:
            classes = data.classes[batch]
            drawn = torch.multinomial(data.chance[classes], 1)[:, 0]
            present, target = drawn.unique(return_inverse=True)
            captions = clip.tokenize([data.caption(word) for word in present.tolist()])
            images = normalize(augment(data.images[batch], data.mirrored[classes]))
            text = model.encode_text(torch.searchsorted(used, captions)[:, :CONTEXT])
            loss = contrastive_loss(
                encode_image(images),
                text,
                target,
                data.fits[classes][:, present],
                model.logit_scale.exp(),
            )
            learn(model, loss, optimizer, schedule)
            total += loss.item()
        print(
            f"epoch {epoch + 1}: loss {total / len(batches):.3f}, "
            f"scale {model.logit_scale.exp().item():.1f}",
            flush=True,
        )
        state = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "schedule": schedule.state_dict(),
            "epoch": epoch + 1,
            "seed": args.seed,
            "steps": steps,
        }
        write_tensors(resume, state)
    whole.weight.data[used] = rows.weight.data
    positions[:CONTEXT] = model.positional_embedding.data
    model.token_embedding, model.positional_embedding.data = whole, positions


@exit_codes
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="the weights file to write")
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    args = parser.parse_args(argv)

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    data = Photographs(args.data)
    print(f"{len(data.images):,} images, {len(data.fits)} classes, {len(data.words)} words")
    model = CLIP(**GEOMETRY)
    train(model, data, args)
    save_half(model, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
