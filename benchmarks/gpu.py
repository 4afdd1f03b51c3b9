"""Training steps, evaluation and memory on a GPU, with random weights: no download.

    python benchmarks/gpu.py [--backbone ViT-B/32 ViT-B/16 ViT-L/14] [--classes 10 100 1000]
        [--batch 32] [--text-chunk 0] [--device cuda] [--output FILE.json]

For each CLIP geometry and number of classes, in float32 without TF32:

* step: one APD step (k = 2 attack steps, 2+2 tokens in 9 layers, online teacher) beside the encoder
  passes that it cannot do without, called bare, and its peak memory. Peers' text pass in every
  attack step is not in here: see benchmarks/cost.py.
* PGD-100: image attack steps a second, as ``apd-eval`` makes them while all images stand.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from clip.model import CLIP
from cost import classnames
from tabulate import tabulate
from torch import Tensor

from apd.attacks import ThreatModel, find_attack, pgd
from apd.attacks.stream import Supply
from apd.clip import build_prompted_clip, encode_image
from apd.distill import kl_distillation
from apd.files import write_json
from apd.precision import forbid_tf32

GEOMETRIES = {  # embed_dim, resolution, layers, width, patch; text: width, heads, layers
    "ViT-B/32": (512, 224, 12, 768, 32, 512, 8, 12),
    "ViT-B/16": (512, 224, 12, 768, 16, 512, 8, 12),
    "ViT-L/14": (768, 224, 24, 1024, 14, 768, 12, 12),
    "mini": (64, 32, 4, 128, 8, 64, 1, 3),
}
TRAIN = ThreatModel("linf", 1, 1, steps=2)
# a radius that fools nobody; no random start: of PGD-100 it is a hundredth, drawn by the CPU
TEST = ThreatModel("linf", 1e-6, 1e-7, steps=10, random_start=False)


def random_clip(name: str, device: torch.device) -> CLIP:
    torch.manual_seed(0)
    embed, size, layers, width, patch, text_width, heads, text_layers = GEOMETRIES[name]
    with device:  # a large CLIP's random numbers take the CPU many seconds
        clip = CLIP(embed, size, layers, width, patch, 77, 49408, text_width, heads, text_layers)
    return clip.float().eval().requires_grad_(False)


class Case:
    def __init__(self, clip: CLIP, classes: int, args: argparse.Namespace) -> None:
        size = clip.visual.input_resolution
        depth_text, depth_visual = (
            min(9, len(part.transformer.resblocks)) for part in (clip, clip.visual)
        )
        prompts = {
            "n_ctx_text": 2,
            "depth_text": depth_text,
            "ctx_init": "a photo of a",
            "n_ctx_visual": 2,
            "depth_visual": depth_visual,
            "text_chunk": args.text_chunk,
        }
        self.student, self.teacher = (
            build_prompted_clip(clip, classnames(classes), **prompts) for _ in range(2)
        )
        self.learned = [
            p for m in (self.student, self.teacher) for p in m.prompt_learner.parameters()
        ]
        self.images = torch.rand(args.batch, 3, size, size, device=args.device)
        self.labels = torch.randint(classes, (args.batch,), device=args.device)

    def step(self) -> None:
        """As trainers/apd.py."""
        student, teacher = self.student, self.teacher
        text, target = student.text_features(), teacher(self.images)
        attacked = pgd(student.classifier(text.detach()), self.images, self.labels, TRAIN)
        logits = student.logits(student.image_features(attacked), text)
        loss = F.cross_entropy(logits, self.labels) + F.cross_entropy(target, self.labels)
        torch.autograd.grad(loss + kl_distillation(logits, target.detach()), self.learned)

    def floor(self) -> None:
        """The encoder passes alone."""

        def encode(model, images: Tensor) -> Tensor:
            contexts = model.prompt_learner.visual_contexts()
            return encode_image(model.clip.visual, images, contexts).sum()

        for _ in range(TRAIN.steps):
            images = self.images.clone().requires_grad_()
            torch.autograd.grad(encode(self.student, images), images)
        models = (self.student, self.teacher)
        losses = [m.text_features().sum() + encode(m, self.images) for m in models]
        torch.autograd.grad(sum(losses), self.learned)

    def evaluate(self) -> None:
        with torch.no_grad():
            logits = self.student.classifier()
            labels = logits(self.images).argmax(1)
        (stage,) = find_attack(TEST.name, TEST).stages
        rows = {"index": torch.arange(len(labels)), "image": self.images, "label": labels}
        for _ in stage.run(Supply([rows]), logits, batch_size=len(labels)):
            pass


def seconds(run: Callable[[], None], device: torch.device, rounds: int) -> float:
    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    run()
    best = float("inf")
    for _ in range(rounds):
        wait()
        began = time.perf_counter()
        run()
        wait()
        best = min(best, time.perf_counter() - began)
    return best


def measure(name: str, clip: CLIP, classes: int, args: argparse.Namespace) -> dict:
    row = {"CLIP": name, "classes": classes}
    cuda = args.device.type == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        case = Case(clip, classes, args)
        step = seconds(case.step, args.device, args.rounds)
        row["step (ms)"] = 1e3 * step
        row["memory (GiB)"] = torch.cuda.max_memory_allocated() / 2**30 if cuda else None
        row["step / floor"] = step / seconds(case.floor, args.device, args.rounds)
        evaluation = seconds(case.evaluate, args.device, args.rounds)
        row["attack steps (images/s)"] = args.batch * TEST.steps / evaluation
        row["PGD-100 (images/s)"] = row["attack steps (images/s)"] / 100
    except torch.OutOfMemoryError:
        row["out of memory"] = "try --text-chunk, --batch"
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", nargs="+", default=[*GEOMETRIES][:3], choices=GEOMETRIES)
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--text-chunk", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--device", type=torch.device, default="cuda")
    parser.add_argument("--output", default="output/benchmarks/gpu.json")
    args = parser.parse_args()
    args.device = torch.device(args.device)
    if args.device.type == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU: --device cpu --backbone mini runs all of it, slowly")
    forbid_tf32()
    device = torch.cuda.get_device_name() if args.device.type == "cuda" else "cpu"
    about = {k: v for k, v in vars(args).items() if k not in ("device", "output")}
    about |= {"device": device, "torch": torch.__version__}
    rows = []
    for name in args.backbone:
        clip = random_clip(name, args.device)
        for classes in args.classes:
            rows.append(measure(name, clip, classes, args))
            write_json(args.output, {**about, "rows": rows})  # what is measured, stays
            print(*(f"{key}: {value}" for key, value in rows[-1].items()), sep=", ", flush=True)
    print(tabulate(rows, headers="keys", floatfmt=".2f"))


if __name__ == "__main__":
    main()
