"""Memory of a training step at ImageNet's geometry, by calculation: no GPU, no download.

    python benchmarks/memory.py [--backbone ViT-B/32 ViT-B/16] [--classes 1000] [--batch 32]
        [--chunks 0 100]

What a graph keeps for its backward pass is counted on a few images and class names (bytes of all
tensors that autograd saves, each once, weights apart) and multiplied: it grows with their number.
An APD step keeps, at its peak, the weights, the text graphs of student and teacher, the teacher's
image graph, and one image graph of the student (of an attack step, or the one that is trained on).
With TRAINER.PROMPT.TEXT_CHUNK a text graph is one chunk's at a time. Not counted: what a layer
needs while it runs, PyTorch's cache and CUDA's context, together about 1 GiB (our guess).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from clip.model import CLIP
from cost import classnames
from gpu import GEOMETRIES
from tabulate import tabulate

from apd.clip import build_prompted_clip

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


def measure(name: str, args: argparse.Namespace) -> list[dict]:
    embed, size, layers, width, patch, text_width, heads, text_layers = GEOMETRIES[name]
    clip = CLIP(embed, size, layers, width, patch, 77, 49408, text_width, heads, text_layers)
    clip = clip.float().eval().requires_grad_(False)
    weights = {p.untyped_storage().data_ptr() for p in clip.parameters()}
    prompts = {
        "n_ctx_text": 2, "depth_text": min(9, text_layers), "ctx_init": "a photo of a",
        "n_ctx_visual": 2, "depth_visual": min(9, layers),
    }  # fmt: skip
    model = build_prompted_clip(clip, classnames(FEW_CLASSES), **prompts)
    images = torch.rand(FEW_IMAGES, 3, size, size)
    image = args.batch * kept(lambda: model.image_features(images), weights) / FEW_IMAGES
    of_class = kept(model.text_features, weights) / FEW_CLASSES
    whole = sum(p.numel() * p.element_size() for p in clip.parameters())
    rows = []
    for chunk in args.chunks:
        text = of_class * (min(chunk, args.classes) if chunk else args.classes)
        graphs = text if chunk else 2 * text
        parts = {"weights": whole, "text graphs": graphs, "image graph": image}
        rows.append({
            "CLIP": name, "batch": args.batch, "classes": args.classes, "TEXT_CHUNK": chunk,
            **{f"{part} (GiB)": value / GIB for part, value in parts.items()},
            "APD step (GiB)": (whole + graphs + 2 * image) / GIB,
            "AdvIVLP step (GiB)": (whole + text + image) / GIB,
            "attack of an evaluation (GiB)": (whole + image) / GIB,
        })  # fmt: skip
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
    args = parser.parse_args()
    rows = [row for name in args.backbone for row in measure(name, args)]
    print(tabulate(rows, headers="keys", floatfmt=".1f"))


if __name__ == "__main__":
    main()
