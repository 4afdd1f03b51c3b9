"""One pass over the data: clean accuracy, and accuracy under attack."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from tqdm import tqdm

from apd.attacks import ThreatModel, surviving
from apd.attacks.pgd import correct
from apd.errors import UserError


def evaluate(
    image_logits: Callable[[Tensor], Tensor],
    loader: Iterable,
    threat: ThreatModel | None = None,
    *,
    parse_batch: Callable[..., tuple[Tensor, Tensor]],
    last_iterate: bool = False,
    seed: int = 0,
    desc: str = "evaluation",
    on_clean: Callable[[Tensor, Tensor], None] | None = None,
) -> list[dict]:
    """Records of the clean evaluation and, with a threat model, of the white-box attack.

    Images that are wrong when clean are not attacked (unless ``last_iterate``). Everything runs
    in float32. The same seed and batches give every model the same random starts.

    Args:
        image_logits: images (B, 3, H, W) in [0, 1] to logits (B, C); differentiable, in
            evaluation mode, with text features computed beforehand.
        loader: batches for ``parse_batch``, which gives images and labels (B,) on the device.
        last_iterate: count the attack's last iterate (see ``apd.attacks.surviving``).
        seed: of the attack's random starts.
        desc: label of the progress bar.
        on_clean: called with each batch's clean logits and labels, for the host's evaluator.

    Returns:
        [clean] or [clean, robust]; each JSON-ready, with keys attack, threat_model (None for
        clean), correct and total (images), accuracy (%), seconds (without data loading).

    Raises:
        UserError: no images, or images outside [0, 1].
        NonFiniteLoss: logits that are NaN or infinite.
    """
    generator = torch.Generator().manual_seed(seed)
    total = clean = robust = 0
    clean_seconds = attack_seconds = 0.0
    progress = tqdm(loader, desc=desc, unit="batch", disable=None)  # none where nobody watches
    for batch in progress:
        images, labels = parse_batch(batch)
        _check_range(images)
        total += len(labels)
        with torch.autocast(images.device.type, enabled=False):
            began = time.perf_counter()
            with torch.no_grad():
                logits = image_logits(images)
            clean += correct(logits, labels).sum().item()
            clean_seconds += time.perf_counter() - began
            if on_clean:
                on_clean(logits, labels)
            if threat:
                began = time.perf_counter()
                alive = surviving(
                    image_logits,
                    images,
                    labels,
                    threat,
                    last_iterate=last_iterate,
                    clean_logits=logits,
                    generator=generator,
                )
                robust += alive.sum().item()
                attack_seconds += time.perf_counter() - began
        shown = {"clean": clean, **({"robust": robust} if threat else {})}
        progress.set_postfix({k: f"{100 * n / total:.1f}%" for k, n in shown.items()})
    if not total:
        raise UserError("there are no images to evaluate on")
    records = [_record("clean", None, clean, total, clean_seconds)]
    if threat:
        conditions = {
            **threat.asdict(),
            "units": "1/255",
            "source": "white-box",
            "precision": "fp32",
            "seed": seed,
            "last_iterate": last_iterate,
        }
        records.append(_record(threat.name, conditions, robust, total, attack_seconds))
    return records


def _record(
    attack: str, threat_model: dict | None, right: int, total: int, seconds: float
) -> dict:
    return {
        "attack": attack,
        "threat_model": threat_model,
        "correct": right,
        "total": total,
        "accuracy": 100 * right / total,
        "seconds": seconds,
    }


def _check_range(images: Tensor) -> None:
    low, high = images.min().item(), images.max().item()
    if not (low >= 0 and high <= 1):  # NaN is out of range too
        raise UserError(
            f"images have values from {low:.3g} to {high:.3g}, but must be in [0, 1]: take "
            "normalize out of INPUT.TRANSFORMS, the model normalises"
        )
