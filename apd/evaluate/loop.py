"""Clean accuracy of a model on a data loader, and accuracy under attack."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from apd.attacks import (
    PGD,
    PRECISIONS,
    Attack,
    ThreatModel,
    find_attack,
    seeded_start,
    surviving,
)
from apd.attacks.pgd import correct
from apd.attacks.stream import Rows, Supply, join, select
from apd.errors import NonFiniteLoss, UserError
from apd.evaluate.flags import add_flags
from apd.evaluate.state import (
    State,
    digest,
    read_finished,
    state_paths,
    tensor_bytes,
    write_finished,
)
from apd.files import atomic_write
from apd.results.schema import WRONG

LogitsFn = Callable[[Tensor], Tensor]

SUBSET_SEED = 0  # of the images of AT.TEST.SUBSET: the same for all methods and runs

# An attack that may do anything must fool every model (Carlini et al. 2019, section 5).
UNBOUNDED = ThreatModel("linf", eps=255, alpha=32, steps=20, loss="margin")
UNBOUNDED_IMAGES = 32


@dataclass(frozen=True)
class Source:
    """Where attacks are made, if not on the target alone.

    Args:
        name: as the record states it: "transfer:...", "adaptive".
        logits_fns: models whose losses are summed; the target among them must be the first.
        fingerprint: of all that made them.
    """

    name: str
    logits_fns: tuple[LogitsFn, ...]
    fingerprint: str


def evaluate(
    image_logits: LogitsFn,
    loader: Iterable,
    threat: ThreatModel | None = None,
    attacks: Sequence[str | Attack] = (),
    *,
    parse_batch: Callable[..., tuple[Tensor, Tensor]],
    split: str = "test",
    last_iterate: bool = False,
    source: Source | None = None,
    precision: str = "fp32",
    subset: int = 0,
    seed: int = 0,
    checks: bool = True,
    store: Path | None = None,
    fingerprint: str = "",
    save_adv: Path | None = None,
    desc: str = "evaluation",
    on_clean: Callable[[Tensor, Tensor], None] | None = None,
) -> list[dict]:
    """Records of the clean evaluation and, with a threat model, of every attack.

    An image is robust if the model is right on it, and on every image that the attack came by
    (PGD: on every iterate). Images that are wrong when clean are not attacked, unless
    ``last_iterate``. Images leave an attack as they fall, and others take their place, so batches
    stay full. All verdicts are in float32. Random starts depend on the seed and on an image's
    place in the data only.

    Args:
        image_logits: images (B, 3, H, W) in [0, 1] to logits (B, C); differentiable, in
            evaluation mode, with text features computed beforehand.
        loader: batches for ``parse_batch``, which gives images and labels (B,) on the device; in
            the same order in every pass.
        attacks: names (see ``apd.attacks.find_attack``) within ``threat``, or attacks; default:
            the threat model's PGD.
        split: of the data set, "test" or "val", that the loader has; only stated.
        last_iterate: count PGD's last iterate only (see ``apd.attacks.surviving``).
        source: where the attacks are made; default: on ``image_logits`` (white-box).
        precision: of the attacks' passes: fp32, bf16, amp.
        subset: how many images, drawn with a fixed seed; 0: all. Needs a ``DataLoader``.
        seed: of the attacks.
        checks: look for random logits, and for images that an unbounded attack does not fool.
        store: folder where states and verdicts are kept, and looked for before an attack.
        fingerprint: of the model; needed with ``store``.
        save_adv: folder for the images that decided, as npz files of a batch each.
        desc: label of the progress bar.
        on_clean: called with each batch's clean logits and labels, for the host's evaluator.

    Returns:
        [clean, ...], each JSON-ready, with keys attack, threat_model (None for clean), correct and
        total (images), accuracy (%), seconds (without data loading), split, images ("all", or
        size and seed of the subset) and flags (see ``apd.evaluate.flags``); those of attacks also
        have key (of their file in ``store``), checks and, with several stages, fell_to.

    Raises:
        UserError: no images, images outside [0, 1], unknown attacks.
        NonFiniteLoss: logits that are NaN or infinite.
    """
    if precision not in PRECISIONS:
        raise UserError(f"attack precision is {precision}: use {', '.join(PRECISIONS)}")
    wanted = list(attacks) or ([threat.name] if threat else [])
    found = [a if isinstance(a, Attack) else find_attack(a, threat, last_iterate) for a in wanted]
    found = [attack for attack in found if attack.stages]
    loader, places = _subset(loader, subset)
    data = _Data(loader, parse_batch)
    clean = _Clean(image_logits, data, checks and bool(found), f"{desc}, clean", on_clean)
    records, files = [clean.record], []
    images = "all" if places is None else {"count": len(places), "seed": SUBSET_SEED}
    places = torch.arange(len(clean.right)) if places is None else places
    for attack in found:
        conditions = {
            **attack.conditions,
            "units": "1/255",
            "source": source.name if source else "white-box",
            "precision": precision,
            "seed": seed,
        }
        identity = {
            "attack": attack.name,
            "threat_model": conditions,
            "model": fingerprint,
            "made_on": source.fingerprint if source else fingerprint,
            "images": clean.digest,
            "places": images,
        }
        key = digest(identity)
        adv = save_adv and Path(save_adv) / f"{attack.name}-{key}"
        # a state is of use only beside the images that were written with it
        unfinished, finished = state_paths(adv or store, key)
        if (kept := read_finished(finished)) is not None:
            records.append(kept["record"])
            continue
        run = _Attacked(attack, image_logits, data, clean, places, unfinished, adv)
        run.run(source, PRECISIONS[precision], seed, f"{desc}, {attack.name}")
        records.append({**run.record(conditions), "key": key})
        kept = {"identity": identity, "lost_to": run.state.lost, "labels": clean.labels}
        files.append((records[-1], kept, {adv, store} - {None}))
    for record in records:
        record["split"], record["images"] = split, images
    add_flags(records)
    for record, kept, folders in files:
        for folder in folders:
            unfinished, finished = state_paths(folder, record["key"])
            write_finished(finished, {"record": record, **kept})
            unfinished.unlink(missing_ok=True)
    return records


def _subset(loader: Iterable, count: int) -> tuple[Iterable, Tensor | None]:
    """A loader over ``count`` of the loader's images, and their places; None: all of them."""
    if not count or count >= len(loader.dataset):
        return loader, None
    generator = torch.Generator().manual_seed(SUBSET_SEED)
    index = torch.randperm(len(loader.dataset), generator=generator)[:count].sort()[0]
    part = DataLoader(
        Subset(loader.dataset, index.tolist()),
        batch_size=loader.batch_size,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
    )
    return part, index


@dataclass
class _Data:
    """A loader whose passes are alike, and a clock that stands still while it loads."""

    loader: Iterable
    parse_batch: Callable[..., tuple[Tensor, Tensor]]
    waited = 0.0

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        began = time.perf_counter()
        for batch in self.loader:
            images, labels = self.parse_batch(batch)
            self.waited += time.perf_counter() - began
            yield images, labels
            began = time.perf_counter()

    def clock(self) -> float:
        return time.perf_counter() - self.waited

    def rows(self, wanted: Tensor, pool: Rows | None, places: Tensor) -> Iterator[Rows]:
        """The images at ``wanted`` (N,), with the columns of those that ``pool`` has.

        ``index`` is an image's place in the whole set, which ``places`` (N,) tells.
        """
        first = 0
        for images, labels in self.batches():
            here = wanted[first : first + len(labels)].nonzero()[:, 0]
            index = places[first : first + len(labels)][here].to(images.device)
            on = here.to(images.device)
            rows = {"index": index, "image": images[on], "label": labels[on]}
            first += len(labels)
            if pool and len(index):
                under = torch.isin(index, pool["index"].to(index.device))
                if under.any():
                    kept = torch.isin(pool["index"].to(index.device), index)
                    columns = {k: v.to(index.device)[kept] for k, v in pool.items()}
                    yield {**select(rows, under), **columns}
                rows = select(rows, ~under)
            if len(rows["index"]):
                yield rows


class _Clean:
    """The pass over the clean images: verdicts, labels, and a digest of what they are.

    With ``checks`` it also asks whether logits are random, and how many of the first images stand
    when the attack may do anything.
    """

    def __init__(self, image_logits, data: _Data, checks: bool, desc: str, on_clean) -> None:
        right, label, seconds = [], [], 0.0
        # images and labels apart: the size of batches must not matter
        hashed = [hashlib.blake2b(digest_size=8) for _ in ("images", "labels")]
        self.batch_size, self.random_logits, tested, stood = 0, False, 0, 0
        progress = tqdm(desc=desc, total=_length(data.loader), unit="batch", disable=None)
        for images, labels in data.batches():
            _check_range(images)
            for part, tensor in zip(hashed, (images, labels)):
                part.update(tensor_bytes(tensor))
            with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
                began = time.perf_counter()
                logits = image_logits(images)
                right.append(correct(logits, labels).cpu())
                seconds += time.perf_counter() - began
                if on_clean:
                    on_clean(logits, labels)
                if checks and not label:
                    again = image_logits(images)
                    self.random_logits = not torch.allclose(logits, again, rtol=1e-3, atol=1e-3)
                if checks and tested < UNBOUNDED_IMAGES:
                    some = right[-1].nonzero()[: UNBOUNDED_IMAGES - tested, 0].to(images.device)
                    tested += len(some)
                    stood += _unbounded(image_logits, images[some], labels[some])
            label.append(labels.cpu())
            self.batch_size = max(self.batch_size, len(labels))
            share = sum(int(part.sum()) for part in right) / sum(map(len, right))
            progress.update()
            progress.set_postfix(clean=f"{100 * share:.1f}%")
        progress.close()
        if not right:
            raise UserError("there are no images to evaluate on")
        self.right, self.labels = torch.cat(right), torch.cat(label)
        self.digest = "".join(part.hexdigest() for part in hashed)
        self.unbounded = 100 * stood / tested if tested else None
        self.record = _record("clean", None, int(self.right.sum()), len(self.right), seconds)


def _unbounded(image_logits: LogitsFn, images: Tensor, labels: Tensor) -> int:
    """How many images stand when the attack may do anything."""
    if not len(images):
        return 0
    generator = torch.Generator().manual_seed(0)
    try:
        return int(surviving(image_logits, images, labels, UNBOUNDED, generator=generator).sum())
    except NonFiniteLoss:  # the attack itself will say so
        return 0


class _Attacked:
    """One attack on all images: goes on from its state, and leaves a record."""

    def __init__(
        self, attack: Attack, image_logits: LogitsFn, data: _Data, clean: _Clean, places: Tensor,
        path: Path | None, save_adv: Path | None,
    ) -> None:  # fmt: skip
        self.attack, self.image_logits, self.data, self.clean = attack, image_logits, data, clean
        self.places, self.path, self.save_adv = places, path, save_adv
        self.state = State(clean.right, bool(attack.conditions["last_iterate"]))
        self.state.load(path)

    def run(self, source: Source | None, precision: torch.dtype | None, seed: int, desc: str):
        state, numbers = self.state, torch.arange(len(self.places))
        to_row = dict(zip(self.places.tolist(), numbers.tolist()))
        progress = tqdm(
            desc=desc, total=len(numbers), initial=int((state.lost != 0).sum()), unit="image",
            disable=None,
        )  # fmt: skip
        for number, stage in enumerate(self.attack.stages, start=1):
            last = number == len(self.attack.stages)
            start = seeded_start(stage.threat, seed) if isinstance(stage, PGD) else None
            wanted = (state.lost == 0) & (state.done == number - 1)
            supply = Supply(self.data.rows(wanted, state.pool, self.places))
            began, unsaved, settled = self.data.clock(), 0, []
            decisions = stage.run(
                supply,
                self.image_logits,
                batch_size=self.clean.batch_size,
                sources=source.logits_fns if source else (),
                precision=precision,
                seed=seed,
                start=start,
            )
            for rows, pool in decisions:
                index = [to_row[place] for place in rows["index"].tolist()]
                state.decide(number, torch.tensor(index), rows, pool)
                out = select(rows, ~rows["right"] | last)
                settled.append({k: out[k].cpu() for k in ("index", "label", "right", "attacked")})
                progress.update(len(out["index"]))
                progress.set_postfix(robust=f"{100 * state.standing / len(numbers):.1f}%")
                unsaved += len(index)
                if unsaved >= self.clean.batch_size:
                    now = self.data.clock()
                    state.seconds += now - began
                    self._save(settled)
                    began, unsaved, settled = self.data.clock(), 0, []
            state.seconds += self.data.clock() - began
            state.pool = None
            self._save(settled)
        progress.close()

    def _save(self, settled: list[Rows]) -> None:
        settled = [rows for rows in settled if len(rows["index"])]
        if self.save_adv and settled:
            columns = {name: column.numpy() for name, column in join(settled).items()}
            # a run that is killed before its state is saved writes the same file again
            with atomic_write(self.save_adv / f"{self.state.files:06d}.npz") as temporary:
                with open(temporary, "wb") as file:
                    np.savez_compressed(file, **columns)
            self.state.files += 1
        self.state.save(self.path)

    def record(self, conditions: dict) -> dict:
        state, total = self.state, len(self.places)
        record = _record(self.attack.name, conditions, state.standing, total, state.seconds)
        attacked = max(int((state.lost != WRONG).sum()), 1)
        if len(self.attack.stages) > 1:
            fell = [int((state.lost == k).sum()) for k in range(1, len(self.attack.stages) + 1)]
            record["fell_to"] = dict(zip((stage.name for stage in self.attack.stages), fell))
        record["checks"] = {
            "zero_gradients": 100 * int(state.zero.sum()) / attacked,
            "broken_gradients": 100 * int(state.broken.sum()) / attacked,
            "random_logits": self.clean.random_logits,
            "unbounded": self.clean.unbounded,
        }
        return record


def _record(attack: str, threat_model: dict | None, right: int, total: int, seconds: float) -> dict:
    return {
        "attack": attack,
        "threat_model": threat_model,
        "correct": right,
        "total": total,
        "accuracy": 100 * right / total,
        "seconds": seconds,
    }


def _length(loader: Iterable) -> int | None:
    return len(loader) if hasattr(loader, "__len__") else None


def _check_range(images: Tensor) -> None:
    low, high = images.min().item(), images.max().item()
    if not (low >= 0 and high <= 1):  # NaN is out of range too
        raise UserError(
            f"images have values from {low:.3g} to {high:.3g}, but must be in [0, 1]: take "
            "normalize out of INPUT.TRANSFORMS, the model normalises"
        )
