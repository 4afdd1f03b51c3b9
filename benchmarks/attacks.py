"""What an evaluation under PGD, and under AutoAttack, costs, as ratios within one run.

    python benchmarks/attacks.py [--threads 2] [--classes 10 100 1000] [--robust 10 30 60]
        [--steps 100] [--survivors 40] [--autoattack 100] [--images 32] [--output FILE.json]

Mini CLIP with tuned text prompts on handwritten digits, at radii that about 10, 30 and 60 % of the
images survive, in float32 on the CPU; as many images as leave about 40 survivors.

* ours: text features once; an image leaves as it falls, another takes its place.
* floor: what the verdicts need, whatever the code. An image that falls at iterate k needs k + 1
  forward and k backward passes through the image encoder (a survivor of K steps K + 1 and K): no
  gradient of an iterate that fools the model is ever asked for. They are called bare (no loss, no
  step, no verdict), on full batches, with the text features computed once.
* passes / floor: images that go through the encoder, forward and backward counted one each, by
  hooks. It does not depend on the machine: what is over 1 are backward passes of images that had
  fallen, because a batch's graph cannot be cut; ours / floor has that and everything else.
* torchattacks: its PGD on all images with text features recomputed at every step, as peers do.
  It repeats itself, so it is timed on one batch and ten steps, and multiplied.
* same verdicts: a plain loop over all iterates of the first images finds each of them to fall at
  the same iterate.

The second table has AutoAttack beside its authors' package, where that is installed
(pip install pyautoattack), on the same images and model: the mini CLIP,
and the mini CLIP with gradients that mislead (``masked.py``), where each part of AutoAttack breaks
images that the parts before it leave.

* fell to: images, part by part; standing: those that no part breaks.
* authors' / ours: of seconds, and of passes (images through the encoder, forward and backward).
* same verdicts: of all images. The two draw other random numbers, so an image that only a lucky
  draw breaks may differ.

Times are the best of two rounds in which the variants take turns.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

import torch
import torch.nn.functional as F
import torchattacks
from cost import best_of, classnames
from masked import mark, masked
from sklearn.datasets import load_digits
from tabulate import tabulate
from torch import Tensor

from apd.attacks import ThreatModel, find_attack, seeded_start
from apd.attacks.pgd import _gradient, _move
from apd.attacks.stream import Supply
from apd.clip import build_prompted_clip, encode_image, load_clip
from apd.files import write_json

DIGITS = "zero one two three four five six seven eight nine".split()
PEER_STEPS = 10
SEARCH_IMAGES, SEARCH_STEPS, SEARCHES = 150, 20, 6  # for the radius
LARGEST = 8.0


class Case:
    """Digits that the model gets right, and a radius that a share of them survives."""

    def __init__(self, classes: int, robust: float, args: argparse.Namespace) -> None:
        digits = load_digits()
        images = torch.from_numpy(digits.images).float()[:, None].expand(-1, 3, -1, -1)
        images = F.interpolate(images / 16, size=32, mode="bicubic", antialias=True).clamp(0, 1)
        labels = torch.from_numpy(digits.target)
        self.batch = args.batch
        names = [*DIGITS, *classnames(classes)][:classes]
        self.model = build_prompted_clip(
            load_clip("mini"), names, n_ctx_text=4, ctx_init="a photo of a"
        )
        self.logits = self.model.classifier(self.model.text_features().detach())
        with torch.no_grad():
            right = self.logits(images).argmax(1) == labels
        # one writer's digits follow another's
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        kept = order[right[order]][: round(100 * args.survivors / robust)]
        self.images, self.labels = images[kept], labels[kept]
        low, high = 0.0, LARGEST
        for _ in range(SEARCHES):
            eps = (low + high) / 2
            self.threat = ThreatModel("linf", eps, eps / 4, SEARCH_STEPS)
            standing = self.fallen_at(self.logits, SEARCH_IMAGES) > SEARCH_STEPS
            above = standing.float().mean() > robust / 100
            low, high = (eps, high) if above else (low, eps)
        self.threat = ThreatModel("linf", eps, eps / 4, args.steps)

    def fallen_at(self, logits: Callable[[Tensor], Tensor], count: int | None = None) -> Tensor:
        """The first iterate of each image that fools the model, steps + 1 where none does."""
        (stage,) = find_attack(self.threat.name, self.threat).stages
        images, labels = self.images[:count], self.labels[:count]
        rows = {"index": torch.arange(len(labels)), "image": images, "label": labels}
        first = torch.empty_like(labels)
        for done, _ in stage.run(
            Supply([rows]), logits, batch_size=self.batch, start=seeded_start(self.threat, 0)
        ):
            first[done["index"]] = done["step"] + done["right"].long()
        return first

    def ours(self) -> None:
        self.fallen_at(self.model.classifier(self.model.text_features().detach()))

    def counted(self) -> tuple[Tensor, int]:
        """``fallen_at``, and the images that went through the encoder, forward and backward."""
        logits, count = counting(self.logits)
        return self.fallen_at(logits), count.total()

    def by_hand(self, count: int) -> Tensor:
        """As ``fallen_at``, of the first images: every iterate of every image."""
        start, steps = seeded_start(self.threat, 0), self.threat.steps
        images, labels = self.images[:count], self.labels[:count]
        x, first = start(images, torch.arange(len(labels)), 0), torch.full_like(labels, steps + 1)
        for step in range(steps + 1):
            logits = self.logits(x.requires_grad_())
            wrong = logits.argmax(1) != labels
            first[wrong & (first > step)] = step
            x = _move(x, _gradient(logits, x, labels, None, "ce"), images, self.threat)
        return first

    def peers(self) -> None:
        threat = self.threat
        attack = torchattacks.PGD(
            self.model, eps=threat.eps / 255, alpha=threat.alpha / 255, steps=PEER_STEPS
        )
        attack(self.images[: self.batch], self.labels[: self.batch])

    def floor(self, forward: int, backward: int) -> None:
        """Bare passes of so many images."""
        self.model.text_features()
        encode = partial(encode_image, self.model.clip.visual)
        for size in sizes(backward, self.batch):
            images = self.images[:size].clone().requires_grad_()
            torch.autograd.grad(encode(images).sum(), images)
        with torch.no_grad():
            for size in sizes(forward - backward, self.batch):
                encode(self.images[:size])


def counting(logits_fn: Callable[[Tensor], Tensor]) -> tuple[Callable, Counter]:
    """``logits_fn``, and a count of the images that go through it, forward and backward."""
    count = Counter()

    def logits(x: Tensor) -> Tensor:
        count["forward"] += len(x)
        if x.requires_grad and torch.is_grad_enabled():
            x.register_hook(lambda gradient: count.update(backward=len(gradient)))
        return logits_fn(x)

    return logits, count


class AutoAttackCase:
    """Digits that the model gets right, under the standard attack: ours, and its authors'."""

    def __init__(self, mislead: bool, args: argparse.Namespace) -> None:
        case = Case(10, 40, args)
        self.images, self.labels = case.images[: args.images], case.labels[: args.images]
        self.logits, self.eps = case.logits, case.threat.eps
        if mislead:
            self.images, _ = mark(self.images)
            self.logits = masked(case.logits)
        with torch.no_grad():
            right = self.logits(self.images).argmax(1) == self.labels
        self.images, self.labels = self.images[right], self.labels[right]
        self.steps, self.batch = args.autoattack, args.batch

    def ours(self, logits: Callable[[Tensor], Tensor] | None = None) -> tuple[Tensor, dict]:
        """Which images stand, (B,) bool, and how many fell to each part."""
        threat = ThreatModel("linf", self.eps, self.eps / 4, 100)
        stands, fell = torch.ones_like(self.labels, dtype=torch.bool), {}
        for stage in find_attack(f"autoattack-{self.steps}", threat).stages:
            index = stands.nonzero()[:, 0]
            rows = {"index": index, "image": self.images[index], "label": self.labels[index]}
            for done, _ in stage.run(Supply([rows]), logits or self.logits, batch_size=self.batch):
                stands[done["index"]] = done["right"]
            fell[stage.name] = len(index) - int(stands.sum())
        return stands, fell

    def authors(self, logits: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        from pyautoattack import AutoAttack

        attack = AutoAttack(logits or self.logits, eps=self.eps / 255, seed=0)
        for part in (attack.apgd, attack.apgd_targeted, attack.fab):
            part.n_iter = self.steps
        attack.square.n_queries = 50 * self.steps
        attacked, _ = attack.run_standard_evaluation(
            self.images, self.labels, batch_size=self.batch
        )
        with torch.no_grad():
            return self.logits(attacked).argmax(1) == self.labels


def measure_autoattack(mislead: bool, args: argparse.Namespace) -> dict:
    case = AutoAttackCase(mislead, args)
    logits, passes = counting(case.logits)
    stands, fell = case.ours(logits)
    row = {
        "model": "masked" if mislead else "mini",
        "eps (1/255)": case.eps,
        "images": len(stands),
        "fell to": ", ".join(f"{name} {count}" for name, count in fell.items()),
        "standing": int(stands.sum()),
    }
    if not find_spec("pyautoattack"):
        return row
    logits, their_passes = counting(case.logits)
    same = torch.equal(stands, case.authors(logits))
    seconds = best_of(args.rounds, warm_up=False, ours=case.ours, authors=case.authors)
    return {
        **row,
        "ours (s)": seconds["ours"],
        "authors' / ours": seconds["authors"] / seconds["ours"],
        "passes": their_passes.total() / passes.total(),
        "same verdicts": "yes" if same else "NO",
    }


def sizes(count: int, batch: int) -> list[int]:
    return [batch] * (count // batch) + [count % batch] * (count % batch > 0)


def measure(classes: int, robust: float, args: argparse.Namespace) -> dict:
    case = Case(classes, robust, args)
    first, passes = case.counted()
    same = torch.equal(first[: args.checked], case.by_hand(args.checked))
    backward = int(first.clamp(max=args.steps).sum())
    forward = backward + len(first)
    floor = partial(case.floor, forward, backward)
    # what stands above has warmed all up
    seconds = best_of(args.rounds, warm_up=False, ours=case.ours, floor=floor, peers=case.peers)
    peers = seconds["peers"] * args.steps / PEER_STEPS * len(first) / case.batch
    return {
        "classes": classes,
        "robust (%)": 100 * (first > args.steps).float().mean().item(),
        "images": len(first),
        "eps (1/255)": case.threat.eps,
        "ours (s)": seconds["ours"],
        "torchattacks / ours": peers / seconds["ours"],
        "ours / floor": seconds["ours"] / seconds["floor"],
        "passes / floor": passes / (forward + backward),
        "same verdicts": "yes" if same else "NO",
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--robust", type=float, nargs="+", default=[10, 30, 60])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--survivors", type=int, default=40)
    parser.add_argument("--checked", type=int, default=64, help="images of the plain loop")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--autoattack", type=int, default=100, help="its steps; 0: leave it out")
    parser.add_argument("--images", type=int, default=32, help="of AutoAttack")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--output", default="output/benchmarks/attacks.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    for classes in args.classes:
        for robust in args.robust:
            rows.append(measure(classes, robust, args))
            print(f"{classes} classes, {robust:g} %: done", file=sys.stderr, flush=True)
    digits = ("", ".0f", "", ".2f", ".1f", ".1f", ".2f", ".2f", "")
    print(tabulate(rows, headers="keys", floatfmt=digits))
    attacked = [measure_autoattack(m, args) for m in (False, True)] if args.autoattack else []
    if attacked and not find_spec("pyautoattack"):
        print("pyautoattack is not installed: its authors' figures are left out", file=sys.stderr)
    print(tabulate(attacked, headers="keys", floatfmt=".2f"))
    result = {**vars(args), "torch": torch.__version__, "rows": rows, "autoattack": attacked}
    write_json(args.output, result)


if __name__ == "__main__":
    main()
