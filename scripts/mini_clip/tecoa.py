"""Fine-tune the image encoder of the mini CLIP of photographs adversarially, TeCoA's way.

    python scripts/mini_clip/tecoa.py DATA --out apd/assets/mini_photo_tecoa.pt --eps 2

Mao 2023 (arXiv 2212.07016): the image encoder alone, on attacked images, by cross-entropy over the
text features of hand-written prompts. It sees what pretraining saw. The file is what
``MODEL.BACKBONE.ROBUST`` takes. Killed, the same line begins again.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import clip
import torch
import torch.nn.functional as F
from evaluate import normalize
from pretrain import save_half
from pretrain_photos import Photographs, augment
from tqdm import tqdm

from apd.attacks import ThreatModel, pgd
from apd.clip import load_clip
from apd.errors import exit_codes


@exit_codes
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="the weights file to write")
    parser.add_argument("--eps", type=float, required=True, help="in 1/255")
    parser.add_argument("--steps", type=int, default=2, help="of the attack, eps / 2 each")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(argv)

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    data = Photographs(args.data)
    model = load_clip("mini-photo")
    names = data.chance.argmax(1)  # each class's own name
    words, name_of = names.unique(return_inverse=True)
    prompts = [data.templates[data.words[w]][0] for w in words.tolist()]
    prompts = [p.format(data.words[w].split(":")[-1]) for p, w in zip(prompts, words.tolist())]
    with torch.no_grad():
        text = F.normalize(model.encode_text(clip.tokenize(prompts)), dim=-1)
    text = model.logit_scale.exp() * text.T
    model.visual.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.visual.parameters(), lr=args.lr, weight_decay=1e-4)
    threat = ThreatModel("linf", args.eps, args.eps / 2, args.steps)
    steps = args.epochs * (len(data.epoch) // args.batch)

    done = 0
    for epoch in range(args.epochs):
        batches = data.batches(args.batch)
        bar = tqdm(batches, f"epoch {epoch + 1}/{args.epochs}", mininterval=10)
        for batch in bar:
            classes = data.classes[batch]
            target = name_of[classes]
            # the other names that are true of an image are no wrong answers
            also = data.fits[classes][:, words].scatter(1, target[:, None], False)

            def logits(images, also=also):
                features = F.normalize(model.visual(normalize(images)), dim=-1)
                return (features @ text).masked_fill(also, -math.inf)

            images = augment(data.images[batch], data.mirrored[classes])
            loss = F.cross_entropy(logits(pgd(logits, images, target, threat)), target)
            for group in optimizer.param_groups:
                group["lr"] = args.lr * (1 + math.cos(math.pi * done / steps)) / 2
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            done += 1
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}", flush=True)
    save_half(model.visual, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
