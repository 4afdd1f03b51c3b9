"""What an evaluation under PGD costs, as ratios within one run.

    python benchmarks/attacks.py [--threads 2] [--classes 10 100 1000] [--robust 10 30 60]
        [--steps 100] [--images 200] [--output FILE.json]

Mini CLIP with tuned text prompts on handwritten digits, at radii that about 10, 30 and 60 % of the
images survive, in float32 on the CPU:

* ours: text features once; an image leaves as it falls, another takes its place.
* floor: the encoder passes that this needs, called bare on full batches: text features once, one
  forward and backward pass for each iterate of an image up to the one that fools the model, and
  that one's forward pass.
* batch by batch: the same without others taking a place, so that batches run empty.
* every iterate: a plain loop over all iterates of all images. The verdicts must be ours.
* torchattacks: its PGD on a model that recomputes the text features, as peers do.

Times are the best of several rounds in which the variants take turns.
"""

from __future__ import annotations

import argparse
import sys

import torch
import torch.nn.functional as F
import torchattacks
from cost import best_of, classnames
from sklearn.datasets import load_digits
from tabulate import tabulate

from apd.attacks import ThreatModel, find_attack, seeded_start, surviving
from apd.attacks.pgd import _gradient, _move
from apd.attacks.stream import Supply
from apd.clip import build_prompted_clip, encode_image, load_clip
from apd.files import write_json

DIGITS = "zero one two three four five six seven eight nine".split()


class Case:
    def __init__(self, classes: int, robust: float, steps: int, count: int, batch: int):
        digits = load_digits()
        images = torch.from_numpy(digits.images[-count:]).float()[:, None].expand(-1, 3, -1, -1)
        self.images = F.interpolate(images / 16, size=32, mode="bicubic", antialias=True)
        self.images = self.images.clamp(0, 1).contiguous()
        self.labels = torch.from_numpy(digits.target[-count:])
        self.batch = batch
        names = [*DIGITS, *classnames(classes)][:classes]
        self.model = build_prompted_clip(load_clip("mini"), names, n_ctx_text=4,
                                         ctx_init="a photo of a")  # fmt: skip
        text = self.model.text_features().detach()
        self.logits = lambda x: self.model.logits(self.model.image_features(x), text)
        with torch.no_grad():
            right = self.logits(self.images).argmax(1) == self.labels
        self.images, self.labels = self.images[right], self.labels[right]
        low, high = 0.0, 16.0
        for _ in range(7):
            eps = (low + high) / 2
            self.threat = ThreatModel("linf", eps, eps / 4, 10)
            share = self.ours().float().mean()
            low, high = (eps, high) if share > robust / 100 else (low, eps)
        self.threat = ThreatModel("linf", eps, eps / 4, steps)

    def ours(self) -> torch.Tensor:
        self.model.text_features()
        (stage,) = find_attack(self.threat.name, self.threat).stages
        rows = {"index": torch.arange(len(self.labels)), "image": self.images,
                "label": self.labels}  # fmt: skip
        alive = torch.zeros(len(self.labels), dtype=torch.bool)
        start = seeded_start(self.threat, 0)
        for done, _ in stage.run(
            Supply([rows]), self.logits, batch_size=self.batch, start=start
        ):
            alive[done["index"]] = done["right"]
        return alive

    def batch_by_batch(self) -> None:
        self.model.text_features()
        generator = torch.Generator().manual_seed(0)
        for x, y in zip(self.images.split(self.batch), self.labels.split(self.batch)):
            surviving(self.logits, x, y, self.threat, generator=generator)

    def first_fooled(self) -> torch.Tensor:
        """The first iterate of each image that fools the model, steps + 1 where none does."""
        self.model.text_features()
        start, steps = seeded_start(self.threat, 0), self.threat.steps
        first = torch.full_like(self.labels, steps + 1)
        for rows in torch.arange(len(self.labels)).split(self.batch):
            images, labels = self.images[rows], self.labels[rows]
            x = start(images, rows, 0)
            for step in range(steps + 1):
                last = step == steps
                with torch.set_grad_enabled(not last):
                    logits = self.logits(x.requires_grad_(not last))
                wrong = logits.argmax(1) != labels
                first[rows[wrong & (first[rows] > step)]] = step
                if not last:
                    x = _move(x, _gradient(logits, x, labels, None, "ce"), images, self.threat)
        return first

    def peers(self) -> None:
        threat = self.threat
        attack = torchattacks.PGD(
            self.model, eps=threat.eps / 255, alpha=threat.alpha / 255, steps=threat.steps
        )
        for x, y in zip(self.images.split(self.batch), self.labels.split(self.batch)):
            self.model(attack(x, y))

    def floor(self, first: torch.Tensor):
        """The passes that images need which fall at iterate ``first``."""
        steps = self.threat.steps
        backward = first.clamp(max=steps).sum().item()
        forward = len(first)

        def encode(images):
            return encode_image(self.model.clip.visual, images, ())

        def run() -> None:
            self.model.text_features()
            left = backward
            while left > 0:
                images = self.images[: min(self.batch, left)].clone().requires_grad_()
                torch.autograd.grad(encode(images).sum(), images)
                left -= len(images)
            left = forward
            with torch.no_grad():
                while left > 0:
                    left -= len(encode(self.images[: min(self.batch, left)]))

        return run


def measure(classes: int, robust: float, args: argparse.Namespace) -> dict:
    case = Case(classes, robust, args.steps, args.images, args.batch)
    first = case.first_fooled()
    verdicts = case.ours()
    assert torch.equal(verdicts, first > args.steps), "verdicts differ"
    seconds = best_of(
        args.rounds,
        ours=case.ours,
        floor=case.floor(first),
        batches=case.batch_by_batch,
        plain=case.first_fooled,
        peers=case.peers,
    )
    ours = seconds["ours"]
    return {
        "classes": classes,
        "robust (%)": 100 * verdicts.float().mean().item(),
        "ours (s)": ours,
        "ours / floor": ours / seconds["floor"],
        "batch by batch / ours": seconds["batches"] / ours,
        "every iterate / ours": seconds["plain"] / ours,
        "torchattacks / ours": seconds["peers"] / ours,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--robust", type=float, nargs="+", default=[10, 30, 60])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--output", default="output/benchmarks/attacks.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    for classes in args.classes:
        for robust in args.robust:
            rows.append(measure(classes, robust, args))
            print(f"{classes} classes, {robust:g} %: done", file=sys.stderr, flush=True)
    print(tabulate(rows, headers="keys", floatfmt=("", ".0f", ".1f", ".2f", ".2f", ".2f", ".2f")))
    write_json(args.output, {**vars(args), "torch": torch.__version__, "rows": rows})


if __name__ == "__main__":
    main()
