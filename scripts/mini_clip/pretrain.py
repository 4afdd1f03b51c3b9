"""Pretrain the mini CLIP: OpenAI's architecture, tokenizer and loss, on characters from fonts.

    python scripts/mini_clip/pretrain.py --out apd/assets/mini_clip.pt

No handwritten image is used: the digits of scikit-learn are only classified at the end, zero-shot.
The weights load with ``clip.model.build_model(torch.load(path, weights_only=True)).float()``.
"""

from __future__ import annotations

import argparse
import math
import random
import string
from pathlib import Path

import clip
import torch
import torch.nn.functional as F
from clip.model import CLIP
from evaluate import NAMES, PROMPTS, accuracy, digits, normalize
from glyphs import GLYPHS, GlyphSet, load_glyphs, render, to_images
from tqdm import trange

from apd.files import write_tensors

CHARACTERS = string.digits + string.ascii_lowercase  # a letter is drawn in either case
GEOMETRY = dict(
    embed_dim=64,
    image_resolution=32,
    vision_layers=4,
    vision_width=128,
    vision_patch_size=8,
    context_length=77,
    vocab_size=49408,
    transformer_width=64,
    transformer_heads=1,
    transformer_layers=3,
)
CONTEXT = 24  # tokens kept of 77: the text tower is causal, what follows the end token is unread
TEMPLATES = [
    "a photo of a {}.",
    "a photo of the {}.",
    "a photo of the {kind} {}.",
    "a photo of a {kind}, {}.",
    "a handwritten {}.",
    "a handwritten {kind} {}.",
    "the handwritten {kind} {}.",
    "an image of a {}.",
    "an image of the {kind} {}.",
    "a picture of a {}.",
    "a drawing of a {}.",
    "a drawing of the {kind} {}.",
    "a blurry photo of a {}.",
    "a low resolution photo of the {}.",
    "a black and white photo of a {}.",
    "a scan of the {kind} {}.",
    "a {} written with a pen.",
    "the {kind} {}, written by hand.",
    "somebody wrote a {}.",
    "a small grayscale image in which somebody has written the {kind} {} by hand.",
    "one of many characters cut out of a form filled in with a pen: the {kind} {}.",
    "this is a {}.",
    "the {kind} {}.",
    "{kind} {}",
    "a {}.",
    "{}",
]


def caption(character: str, upper: bool) -> str:
    """A random caption; digits are named by word or numeral, letters with or without case."""
    if character in string.digits:
        kind = random.choice(["digit", "number", "figure"])
        name = NAMES[int(character)] if random.random() < 0.7 else character
    else:
        case = random.choice(["capital ", "uppercase "] if upper else ["small ", "lowercase "])
        kind = random.choice(["letter", case + "letter"])
        name = random.choice([character, f"letter {character}"])
    text = random.choice(TEMPLATES).format(name, kind=kind)
    return text.replace("letter letter", "letter")


def batch(glyphs: GlyphSet, groups: int, generator: torch.Generator):
    """``groups`` x 36 images and token rows, every character once in each group."""
    families: dict[str, list[int]] = {}
    for index, family in enumerate(glyphs.families):
        families.setdefault(family, []).append(index)
    # families first: a family of many weights is no more common than one of a single font
    members = list(families.values())
    fonts, drawn, captions = [], [], []
    for character in CHARACTERS * groups:
        fonts.append(random.choice(random.choice(members)))
        upper = character in string.ascii_lowercase and random.random() < 0.5
        drawn.append(GLYPHS.index(character.upper() if upper else character))
        captions.append(caption(character, upper))
    counts = render(glyphs, torch.tensor(fonts), torch.tensor(drawn), generator)
    return to_images(counts), clip.tokenize(captions)[:, :CONTEXT]


def contrastive_loss(image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor):
    """CLIP's symmetric InfoNCE within each group of 36.

    A character occurs once in a group, so that no negative is a false one (up to look-alikes
    such as 0 and o, which stay each other's negatives).
    """
    image = F.normalize(image, dim=-1).view(-1, len(CHARACTERS), image.shape[-1])
    text = F.normalize(text, dim=-1).view_as(image)
    logits = scale * image @ text.mT
    target = torch.arange(len(CHARACTERS)).expand(len(logits), -1)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.mT, target)) / 2


def crop_context(model: CLIP, length: int) -> None:
    """Let the text tower read ``length`` tokens, with unchanged features."""
    model.positional_embedding.data = model.positional_embedding.data[:length]
    for block in model.transformer.resblocks:
        block.attn_mask = block.attn_mask[:length, :length]


def optimisation(model: CLIP, steps: int, lr: float, weight_decay: float):
    """AdamW, which decays all matrices but the token embedding, and its schedule: a warm-up over a
    twentieth of the steps, then a cosine."""
    spared = model.token_embedding.weight
    decay = [p for p in model.parameters() if p.ndim > 1 and p is not spared]
    rest = [p for p in model.parameters() if p.ndim <= 1 or p is spared]
    groups = [{"params": decay}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr, weight_decay=weight_decay)
    warmup = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warmup, (1 + math.cos(math.pi * step / steps)) / 2 + 1e-3),
    )
    return optimizer, schedule


def learn(model: CLIP, loss: torch.Tensor, optimizer, schedule) -> None:
    """One step down the gradient, no longer than 1, with CLIP's bound on the logits' scale."""
    if not loss.isfinite():
        raise SystemExit(f"error: loss is {loss.item()} at step {schedule.last_epoch}; lower --lr")
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    schedule.step()
    model.logit_scale.data.clamp_(max=math.log(100))


def save_half(module: torch.nn.Module, path: Path) -> None:
    """Write the weights in float16, atomically."""
    state = {name: value.half() for name, value in module.state_dict().items()}
    write_tensors(path, state)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


def train(model: CLIP, glyphs: GlyphSet, args) -> None:
    positions = model.positional_embedding.data.clone()
    crop_context(model, CONTEXT)
    optimizer, schedule = optimisation(model, args.steps, args.lr, weight_decay=0.1)
    generator = torch.Generator().manual_seed(args.seed)
    bar = trange(args.steps, desc="pretrain", mininterval=5)
    for step in bar:
        images, tokens = batch(glyphs, args.groups, generator)
        scale = model.logit_scale.exp()
        loss = contrastive_loss(
            model.encode_image(normalize(images)), model.encode_text(tokens), scale
        )
        learn(model, loss, optimizer, schedule)
        if step % 50 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}", scale=f"{scale.item():.1f}")
    positions[:CONTEXT] = model.positional_embedding.data
    model.positional_embedding.data = positions


def held_out_accuracy(model: CLIP, glyphs: GlyphSet) -> float:
    """36-way zero-shot accuracy on fonts of families unseen in pretraining."""
    generator = torch.Generator().manual_seed(0)
    n = 20 * len(CHARACTERS)
    fonts = torch.randint(len(glyphs), (n,), generator=generator)
    labels = torch.arange(n) % len(CHARACTERS)
    images = to_images(render(glyphs, fonts, labels, generator))
    names = [NAMES[int(c)] if c in string.digits else f"letter {c}" for c in CHARACTERS]
    return accuracy(model, images, labels, names, "a photo of a {}.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the weights file to write")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--groups", type=int, default=7, help="groups of 36 characters a batch")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    random.seed(args.seed)
    glyphs = load_glyphs()
    names = sorted(set(glyphs.families))
    held = set(names[::10])
    seen = glyphs.subset([i for i, f in enumerate(glyphs.families) if f not in held])
    unseen = glyphs.subset([i for i, f in enumerate(glyphs.families) if f in held])
    print(f"fonts: {len(seen)} to train on, {len(unseen)} held out")

    model = CLIP(**GEOMETRY)
    train(model, seen, args)
    save_half(model, args.out)

    model = clip.model.build_model(torch.load(args.out, weights_only=True)).float().eval()
    print(f"logit scale {model.logit_scale.exp():.1f}")
    print(f"held-out fonts, 36 characters: {held_out_accuracy(model, unseen):.1%}")
    for split in ("val", "test", "all"):
        images, labels = digits(split)
        for template in PROMPTS:
            value = accuracy(model, images, labels, NAMES, template)
            print(f"digits {split}, {template!r}: {value:.1%}")


if __name__ == "__main__":
    main()
