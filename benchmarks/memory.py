"""Memory of a training step at ImageNet's geometry, by calculation: no GPU, no download.

    python benchmarks/memory.py [--backbone ViT-B/32 ViT-B/16] [--classes 1000] [--batch 32]
        [--chunks 0 100] [--device cuda]

What a graph keeps for its backward pass is counted on a few images and class names (bytes of all
tensors that autograd saves, each once, weights apart) and multiplied: it grows with their number.
An APD step keeps, at its peak, the weights, the text graphs of student and teacher, the teacher's
image graph, and one image graph of the student (of an attack step, or the one that is trained on).
With TRAINER.PROMPT.TEXT_CHUNK a text graph is one chunk's at a time. Not counted: what a layer
needs while it runs, PyTorch's cache and CUDA's context, together about 1 GiB (our guess).

With --device cuda the peaks of an APD step and of an evaluation's attack are measured beside (what
PyTorch allocates, that is without its cache and CUDA's context).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from gpu import GEOMETRIES, Case, random_clip
from tabulate import tabulate

from apd.precision import forbid_tf32

GIB = 2**30
FEW_IMAGES, FEW_CLASSES = 2, 64


def kept(run: Callable[[], torch.Tensor], weights: set[int]) -> int:
    """Bytes that the graph of ``run`` keeps."""
    found: dict[int, int] = {}

    def save(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        graph = run()
    del graph
    return sum(found.values())


def peak(run: Callable[[], None]) -> float:
    """GiB that a GPU's memory is in use for at most."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    try:
        run()
    except torch.OutOfMemoryError:
        return float("inf")
    return torch.cuda.max_memory_allocated() / GIB


def measure(name: str, args: argparse.Namespace) -> list[dict]:
    clip = random_clip(name, args.device)
    weights = {p.untyped_storage().data_ptr() for p in clip.parameters()}
    few = argparse.Namespace(device=args.device, batch=FEW_IMAGES, text_chunk=0)
    case = Case(clip, FEW_CLASSES, few)
    model, images = case.student, case.images
    image = args.batch * kept(lambda: model.image_features(images), weights) / FEW_IMAGES
    of_class = kept(model.text_features, weights) / FEW_CLASSES
    whole = sum(p.numel() * p.element_size() for p in clip.parameters())
    rows = []
    for chunk in args.chunks:
        text = of_class * (min(chunk, args.classes) if chunk else args.classes)
        graphs = text if chunk else 2 * text
        parts = {"weights": whole, "text graphs": graphs, "image graph": image}
        row = {
            "CLIP": name,
            "batch": args.batch,
            "classes": args.classes,
            "TEXT_CHUNK": chunk,
            **{f"{part} (GiB)": value / GIB for part, value in parts.items()},
            "APD step (GiB)": (whole + graphs + 2 * image) / GIB,
            "AdvIVLP step (GiB)": (whole + text + image) / GIB,
            "attack of an evaluation (GiB)": (whole + image) / GIB,
        }
        if args.device.type == "cuda":
            args.text_chunk = chunk
            case = Case(clip, args.classes, args)
            row["APD step, measured (GiB)"] = peak(case.step)
            row["attack, measured (GiB)"] = peak(case.evaluate)
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [*GEOMETRIES]
    parser.add_argument("--backbone", nargs="+", default=["ViT-B/32", "ViT-B/16"], choices=names)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--chunks", type=int, nargs="+", default=[0, 100])
    parser.add_argument("--device", type=torch.device, default="cpu")
    args = parser.parse_args()
    forbid_tf32()
    rows = [row for name in args.backbone for row in measure(name, args)]
    print(tabulate(rows, headers="keys", floatfmt=".1f"))


if __name__ == "__main__":
    main()
