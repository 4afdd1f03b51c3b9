"""What a training step, a text pass and a PGD-100 evaluation cost, as ratios within one run.

    python benchmarks/cost.py [--threads 2] [--classes 10 100 1000] [--output FILE.json]

All on the mini CLIP's geometry with random weights, batch 32, in float32 on the CPU:

* step: one adversarial training step beside the floor: the encoder passes it cannot do without,
  called bare (k attack passes to the input, one pass to the prompts, one text pass; for APD the
  teacher's passes too). The same step with the text encoder inside the attack loop, over 77
  positions, as peers do it, is written plainly here.
* text: text features and their gradient, beside CLIP's own transformer over 77 positions.
* evaluation: PGD-100 where lost images leave the batch, beside every iterate of every image
  (the verdicts are compared), and beside torchattacks with the text features recomputed.

Times are the best of several rounds in which the variants take turns, so that what else the
machine does hits all of them. Memory is each variant's peak RSS in a process of its own.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import clip
import torch
import torch.nn.functional as F
import torchattacks
from clip.model import CLIP
from sklearn.datasets import load_digits
from tabulate import tabulate

from apd.attacks import ThreatModel, pgd, surviving
from apd.clip import build_prompted_clip, encode_image, load_clip
from apd.distill import kl_distillation
from apd.files import write_json

BATCH, STEPS = 32, 3
TRAIN = ThreatModel("linf", 2, 1, STEPS)
TEST = ThreatModel("linf", 2, 0.5, 100)
WORDS = "house river stone bread garden window silver copper velvet thunder meadow lantern".split()


def make_clip() -> CLIP:
    torch.manual_seed(0)
    model = CLIP(64, 32, 4, 128, 8, 77, 49408, 64, 1, 3)
    return model.float().eval().requires_grad_(False)


def classnames(count: int) -> list[str]:
    """Names of one to four words, mostly short, as those of ImageNet are."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.tensor([1, 1, 2, 2, 2, 3, 4])
    return [
        " ".join(
            WORDS[i]
            for i in torch.randint(
                len(WORDS),
                (int(lengths[torch.randint(7, (), generator=generator)]),),
                generator=generator,
            )
        )
        for _ in range(count)
    ]


PROMPTS = {
    "APT": {"n_ctx_text": 16},
    "AdvIVLP": {
        "n_ctx_text": 4,
        "depth_text": 3,
        "ctx_init": "a photo of a",
        "n_ctx_visual": 4,
        "depth_visual": 4,
    },
}
PROMPTS["APD"] = PROMPTS["AdvIVLP"]


class Case:
    """One method's step, its floor and its peers' way, on the same weights and images."""

    def __init__(self, method: str, classes: int):
        self.method = method
        self.clip, names = make_clip(), classnames(classes)
        self.student = build_prompted_clip(self.clip, names, **PROMPTS[method])
        self.teacher = build_prompted_clip(self.clip, names, **PROMPTS[method])
        self.learners = [self.student, self.teacher] if method == "APD" else [self.student]
        self.optimisers = [
            torch.optim.SGD(m.prompt_learner.parameters(), lr=0, momentum=0.9)
            for m in self.learners
        ]
        self.images = torch.rand(BATCH, 3, 32, 32)
        self.labels = torch.randint(classes, (BATCH,))
        self.tokens = clip.tokenize([f"a photo of a {name}." for name in names])

    def step(self) -> None:
        """As apd/training/adversarial.py and trainers/apd.py do it."""
        student, teacher = self.student, self.teacher
        text = student.text_features()
        fixed = text.detach()
        adversarial = pgd(
            lambda x: student.logits(student.image_features(x), fixed),
            self.images,
            self.labels,
            TRAIN,
        )
        logits = student.logits(student.image_features(adversarial), text)
        loss = F.cross_entropy(logits, self.labels)
        if self.method == "APD":
            target = teacher(self.images)
            loss = loss + kl_distillation(logits, target) + F.cross_entropy(target, self.labels)
        self.update(loss)

    def update(self, loss: torch.Tensor) -> None:
        for optimiser in self.optimisers:
            optimiser.zero_grad()
        loss.backward()
        for optimiser in self.optimisers:
            optimiser.step()

    def floor(self) -> None:
        """The encoder passes alone."""
        for _ in range(STEPS):
            image = self.images.requires_grad_()
            features = encode_image(self.clip.visual, image, self.visual(self.student))
            torch.autograd.grad(features.sum(), image)
        self.images.requires_grad_(False)
        for model in self.learners:
            text = model.text_features()
            features = encode_image(self.clip.visual, self.images, self.visual(model))
            loss = text.sum() + features.sum()
            torch.autograd.grad(loss, list(model.prompt_learner.parameters()))

    @staticmethod
    def visual(model) -> list[torch.Tensor]:
        return model.prompt_learner.visual_contexts()

    def peers(self) -> None:
        """The text encoder over 77 positions at every attack step, as peers do."""
        student = self.student

        def logits(images: torch.Tensor) -> torch.Tensor:
            return student.logits(student.image_features(images), self.full_text())

        self.update(
            F.cross_entropy(logits(pgd(logits, self.images, self.labels, TRAIN)), self.labels)
        )

    def full_text(self) -> torch.Tensor:
        """Text features by CLIP's own blocks, all 77 positions of every class."""
        contexts = self.student.prompt_learner.text_contexts()
        n_ctx, count = len(contexts[0]), len(self.tokens)
        # "a photo of a" stands for the context, whatever its length
        x = self.clip.token_embedding(self.tokens)
        x = torch.cat([x[:, :1], contexts[0].expand(count, -1, -1), x[:, 5:]], dim=1)[:, :77]
        x = (x + self.clip.positional_embedding).permute(1, 0, 2)
        for i, block in enumerate(self.clip.transformer.resblocks):
            if 0 < i < len(contexts):
                context = contexts[i].unsqueeze(1).expand(-1, count, -1)
                x = torch.cat([x[:1], context, x[1 + n_ctx :]])
            x = block(x)
        x = self.clip.ln_final(x.permute(1, 0, 2))
        x = x[torch.arange(count), self.tokens.argmax(dim=-1) + n_ctx - 4]
        return F.normalize(x @ self.clip.text_projection, dim=-1)

    def text(self, features: Callable[[], torch.Tensor]) -> None:
        torch.autograd.grad(features().sum(), self.student.prompt_learner.text_contexts())


class Evaluation:
    """PGD-100 of zero-shot mini CLIP on 100 digits, at a radius that about 30 % survive."""

    def __init__(self, classes: int):
        digits = load_digits()
        images = torch.from_numpy(digits.images[-100:]).float()[:, None].expand(-1, 3, -1, -1) / 16
        self.images = F.interpolate(images, size=32, mode="bicubic", antialias=True).clamp(0, 1)
        self.labels = torch.from_numpy(digits.target[-100:])
        names = [*"zero one two three four five six seven eight nine".split(), *classnames(classes)]
        self.model = build_prompted_clip(load_clip("mini"), names[:classes])
        # prompts that are tuned, so that peers have a reason to recompute the text
        self.tuned = build_prompted_clip(
            self.model.clip, names[:classes], n_ctx_text=4, ctx_init="a photo of a"
        )
        text = self.tuned.text_features().detach()
        self.logits = lambda x: self.tuned.logits(self.tuned.image_features(x), text)
        low, high = 0.0, 8.0
        for _ in range(6):
            eps = (low + high) / 2
            robust = self.survivors(ThreatModel("linf", eps, eps / 4, 20)).float().mean()
            low, high = (eps, high) if robust > 0.3 else (low, eps)
        self.threat = ThreatModel("linf", eps, eps / 4, 100)

    def survivors(self, threat: ThreatModel) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return surviving(self.logits, self.images, self.labels, threat, generator=generator)

    def ours(self) -> torch.Tensor:
        """Text once, lost images leave."""
        self.tuned.text_features()
        return self.survivors(self.threat)

    def plain(self) -> torch.Tensor:
        """Text once, every iterate of every image."""
        self.tuned.text_features()
        right = []

        def logits(images: torch.Tensor) -> torch.Tensor:
            right.append(self.logits(images))
            return right[-1]

        with torch.no_grad():
            logits(self.images)
        generator = torch.Generator().manual_seed(0)
        attacked = pgd(logits, self.images, self.labels, self.threat, generator=generator)
        with torch.no_grad():
            logits(attacked)
        return torch.stack([z.argmax(dim=1) == self.labels for z in right]).all(dim=0)

    def peers(self) -> None:
        """torchattacks on a model that recomputes its text features."""
        eps, alpha = self.threat.eps / 255, self.threat.alpha / 255
        attack = torchattacks.PGD(self.tuned, eps=eps, alpha=alpha, steps=self.threat.steps)
        self.tuned(attack(self.images, self.labels))


def best_of(
    rounds: int, warm_up: bool = True, **variants: Callable[[], object]
) -> dict[str, float]:
    """Seconds of each variant: the best of ``rounds`` in which they take turns."""
    best = dict.fromkeys(variants, float("inf"))
    for i in range(-warm_up, rounds):  # the round before the first warms up
        for name, run in variants.items():
            began = time.perf_counter()
            run()
            if i >= 0:
                best[name] = min(best[name], time.perf_counter() - began)
    return best


def peak_mib(kind: str, classes: int, variant: str, threads: int) -> float:
    """Peak RSS of one call of a variant, in a process of its own."""
    command = [sys.executable, __file__, "--threads", str(threads), "--memory", kind, variant]
    command += ["--classes", str(classes)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def peak_of_this_process() -> float:
    """In MiB. Not getrusage's figure, which starts from the parent's (Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def variants(kind: str, classes: int) -> dict[str, Callable[[], object]]:
    """What is compared: the first is ours."""
    if kind == "evaluation":
        case = Evaluation(classes)
        return {"ours": case.ours, "every iterate": case.plain, "torchattacks": case.peers}
    if kind == "text":
        case = Case("AdvIVLP", classes)
        return {
            "ours": lambda: case.text(case.student.text_features),
            "77 positions": lambda: case.text(case.full_text),
        }
    case = Case(kind, classes)
    peers = {"peers' way": case.peers} if kind == "AdvIVLP" else {}
    return {"ours": case.step, "floor": case.floor, **peers}


def measure(kind: str, classes: int, rounds: int, threads: int) -> list[dict]:
    """One row a variant."""
    runs = variants(kind, classes)
    seconds = best_of(rounds, **runs)
    if kind == "evaluation":
        assert torch.equal(runs["ours"](), runs["every iterate"]()), "verdicts differ"
    return [
        {
            "what": kind if kind in ("text", "evaluation") else f"step, {kind}",
            "classes": classes,
            "variant": name,
            "seconds": time_taken,
            "times ours": time_taken / seconds["ours"],
            "peak MiB": peak_mib(kind, classes, name, threads),
        }
        for name, time_taken in seconds.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--rounds", type=int, default=7)
    kinds = ["APT", "AdvIVLP", "APD", "text", "evaluation"]
    parser.add_argument("--kinds", nargs="+", default=kinds)
    parser.add_argument("--output", default="output/benchmarks/cost.json")
    parser.add_argument("--memory", nargs=2, metavar=("KIND", "VARIANT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory:
        kind, variant = args.memory
        variants(kind, args.classes[0])[variant]()
        print(peak_of_this_process())
        return
    rows = []
    for kind in args.kinds:
        for classes in args.classes:
            rounds = 2 if kind == "evaluation" else args.rounds
            rows += measure(kind, classes, rounds, args.threads)
            print(f"{kind}, {classes} classes: done", file=sys.stderr, flush=True)
    print(tabulate(rows, headers="keys", floatfmt=("", "", "", ".4f", ".2f", ".0f")))
    write_json(args.output, {"threads": args.threads, "torch": torch.__version__, "rows": rows})


if __name__ == "__main__":
    main()
