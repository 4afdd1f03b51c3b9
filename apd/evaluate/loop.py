"""Clean accuracy of a model on a data loader, and accuracy under attack."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from apd import ranks
from apd.attacks import PGD, PRECISIONS, Attack, ThreatModel
from apd.attacks.pgd import correct
from apd.attacks.stream import HOST, Rows, Supply, join, select
from apd.errors import NonFiniteLoss, UserError
from apd.evaluate.flags import add_flags
from apd.evaluate.plan import CLEAN, Kept, LogitsFn, Plan, Shard, Source
from apd.evaluate.state import UNBOUNDED_IMAGES, AttackState, Clean, ImageDigest
from apd.files import atomic_write
from apd.results.verdicts import WRONG, Verdicts, read_verdicts, write_verdicts

SUBSET_SEED = 0  # of the images of AT.TEST.SUBSET: the same for all methods and runs

# An attack that may do anything must fool every model (Carlini et al. 2019, section 5).
UNBOUNDED = ThreatModel("linf", eps=255, alpha=32, steps=20, loss="margin")


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
    shard: Shard | None = None,
    only: Collection[str] | None = None,
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
        shard: find what these images meet among all the others, and leave it in ``store`` for
            ``apd.evaluate.shards.Merger``. Needs a ``DataLoader``.
        only: the keys of those attacks of the shard that are wanted; default: all.

    Returns:
        [clean, ...], each JSON-ready, with keys attack, threat_model (None for clean), correct and
        total (images), accuracy (%), seconds (without data loading), split, images ("all", or
        size and seed of the subset) and flags (see ``apd.evaluate.flags``); those of attacks also
        have key (of their file in ``store``) and, with several stages, fell_to. checks has what
        flags are raised by.

    Raises:
        UserError: no images, images outside [0, 1], unknown attacks.
        NonFiniteLoss: logits that are NaN or infinite.
    """
    plan = Plan.of(
        threat, attacks, last_iterate, source, precision, seed, fingerprint, store, save_adv
    )
    places = places_of(loader, subset)
    data = Data(*part_of(loader, places, shard), parse_batch)
    checks = checks and bool(plan.attacks)
    clean = _look(image_logits, data, checks, seed, f"{desc}, clean", on_clean)
    records, files = [clean_record(clean)], []
    if shard:
        clean.save(plan.kept(CLEAN, clean.digest, places.told, shard).finished)
    for attack in plan.attacks:
        kept = plan.kept(attack, clean.digest, places.told, shard)
        if shard and (kept.finished.exists() or only is not None and kept.key not in only):
            continue
        if kept.finished and kept.finished.exists():
            records.append(read_verdicts(kept.finished).record)
            continue
        run = _Attacked(attack, image_logits, data, clean, kept)
        run.run(source, PRECISIONS[precision], seed, f"{desc}, {attack.name}")
        if shard:
            kept.unfinished.rename(kept.finished)
        records.append(attack_record(plan, kept, attack, run.state, clean))
        files.append((records[-1], kept, run.state))
    finish(records, split, places, [] if shard else files, clean.labels)
    return records


def clean_record(clean: Clean) -> dict:
    record = _record("clean", None, clean.right, clean.seconds)
    commonest = int(clean.labels.bincount().max())
    return {**record, "checks": {"commonest": 100 * commonest / record["total"]}}


def attack_record(plan: Plan, kept: Kept, attack: Attack, state: AttackState, clean: Clean) -> dict:
    """Of an attack that is at its end."""
    record = _record(attack.name, plan.conditions(attack), state.lost == 0, state.seconds)
    attacked = max(int((state.lost != WRONG).sum()), 1)
    if len(attack.stages) > 1:
        fell = [int((state.lost == k).sum()) for k in range(1, len(attack.stages) + 1)]
        record["fell_to"] = dict(zip((stage.name for stage in attack.stages), fell))
    moved = state.moved if state.done.any() else None  # no image was there to be attacked
    record["checks"] = {
        "zero_gradients": 100 * int(state.zero.sum()) / attacked,
        "broken_gradients": 100 * int(state.broken.sum()) / attacked,
        "moved": None if moved is None else 100 * int(moved.sum()) / attacked,
        **clean.checks(),
    }
    return {**record, "key": kept.key}


def finish(
    records: list[dict],
    split: str,
    places: Places,
    files: list[tuple[dict, Kept, AttackState]],
    labels: Tensor,
) -> None:
    """Say of all records what they are about and what is odd, and keep those of ``files``."""
    for record in records:
        record["split"], record["images"] = split, places.told
    add_flags(records)
    for record, kept, state in files:
        verdicts = Verdicts(record, kept.identity, state.lost.numpy(), labels.numpy())
        for folder in kept.folders:
            write_verdicts(folder / f"{kept.key}.json", verdicts)
            (folder / f"{kept.key}.pt").unlink(missing_ok=True)


class Places(NamedTuple):
    """Which of a data set's images an evaluation is about."""

    index: Tensor | None  # None: all
    told: str | dict  # "all", or size and seed of the subset


def places_of(loader: Iterable, count: int) -> Places:
    """``count`` of the loader's images, drawn with a fixed seed; 0: all."""
    if not count or count >= len(loader.dataset):
        return Places(None, "all")
    generator = torch.Generator().manual_seed(SUBSET_SEED)
    index = torch.randperm(len(loader.dataset), generator=generator)[:count].sort()[0]
    return Places(index, {"count": count, "seed": SUBSET_SEED})


def part_of(
    loader: Iterable, places: Places, shard: Shard | None
) -> tuple[Iterable, Tensor | None]:
    """A loader over the images at ``places``, or a shard of them, and their places (None: all).

    Raises:
        UserError: more shards than images.
    """
    index = places.index
    if shard:
        index = torch.arange(len(loader.dataset)) if index is None else index
        if shard.count > len(index):
            raise UserError(f"{shard.count} shards of {len(index)} images: use fewer")
        index = index[shard.rows]
    if index is None:
        return loader, None
    part = DataLoader(
        Subset(loader.dataset, index.tolist()),
        batch_size=loader.batch_size,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
    )
    return part, index


@dataclass
class Data:
    """A loader whose passes are alike, and a clock that stands still while it loads."""

    loader: Iterable
    index: Tensor | None  # the images' places in the data set; None: it has no others
    parse_batch: Callable[..., tuple[Tensor, Tensor]]
    waited = 0.0

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        began = time.perf_counter()
        for batch in self.loader:
            images, labels = self.parse_batch(batch)
            self.waited += time.perf_counter() - began
            yield images, labels
            began = time.perf_counter()

    def places(self, first: int, count: int) -> Tensor:
        """Of so many images, from the ``first`` on."""
        if self.index is None:
            return torch.arange(first, first + count)
        return self.index[first : first + count]

    def clock(self) -> float:
        return time.perf_counter() - self.waited

    def rows(self, wanted: Tensor, pool: Rows | None) -> Iterator[Rows]:
        """The images at ``wanted`` (N,), with the columns of those that ``pool`` has.

        ``index`` is an image's place in the data set.
        """
        if pool:  # rows of an attack are in no order; here they meet the images'
            order = pool["index"].argsort()
            pool = {name: column[order.to(column.device)] for name, column in pool.items()}
        first = 0
        for images, labels in self.batches():
            here = wanted[first : first + len(labels)].nonzero()[:, 0]
            index = self.places(first, len(labels))[here]
            on = here.to(images.device)
            rows = {"index": index, "image": images[on], "label": labels[on]}
            first += len(labels)
            if pool and len(index):
                under = torch.isin(index, pool["index"].cpu())
                if under.any():
                    kept = select(pool, torch.isin(pool["index"].cpu(), index))
                    columns = {k: v.to("cpu" if k in HOST else on.device) for k, v in kept.items()}
                    yield {**select(rows, under), **columns}
                rows = select(rows, ~under)
            if len(rows["index"]):
                yield rows


def _look(
    image_logits: LogitsFn, data: Data, checks: bool, seed: int, desc: str, on_clean
) -> Clean:
    """The pass over the clean images.

    With ``checks`` it also asks whether logits are random, and which of the first images stand
    when the attack may do anything.
    """
    predicted, label, tested, stood = [], [], [], []
    seconds, batch_size, count, right, random_logits = 0.0, 0, 0, 0, False
    digest = ImageDigest()
    progress = tqdm(desc=desc, total=_length(data.loader), unit="batch", disable=ranks.hidden())
    for images, labels in data.batches():
        _check_range(images)
        digest.update(images, labels)
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            began = time.perf_counter()
            logits = image_logits(images)
            fine = correct(logits, labels).cpu()
            seconds += time.perf_counter() - began
            if on_clean:
                on_clean(logits, labels)
            if checks and not label:
                again = image_logits(images)
                random_logits = not torch.allclose(logits, again, rtol=1e-3, atol=1e-3)
        if checks and (left := UNBOUNDED_IMAGES - sum(map(len, tested))):
            some = fine.nonzero()[:left, 0]
            tested.append(count + some)
            places = data.places(count, len(labels))[some]
            on = some.to(images.device)
            stood.append(_unbounded(image_logits, images[on], labels[on], places, seed))
        predicted.append(logits.argmax(dim=1).cpu())
        label.append(labels.cpu())
        batch_size = max(batch_size, len(labels))
        count, right = count + len(labels), right + int(fine.sum())
        progress.update()
        progress.set_postfix(clean=f"{100 * right / count:.1f}%")
    progress.close()
    if not count:
        raise UserError("there are no images to evaluate on")
    nothing = torch.zeros(0, dtype=torch.long)
    return Clean(
        torch.cat(predicted),
        torch.cat(label),
        torch.cat([nothing, *tested]),
        torch.cat([nothing.bool(), *stood]),
        random_logits,
        seconds,
        batch_size,
        str(digest),
    )


def _unbounded(
    image_logits: LogitsFn, images: Tensor, labels: Tensor, places: Tensor, seed: int
) -> Tensor:
    """Which of the images stand when the attack may do anything, (B,) bool on the CPU."""
    stands = torch.zeros(len(images), dtype=torch.bool)
    row = {place: i for i, place in enumerate(places.tolist())}
    rows = {"index": places, "image": images, "label": labels}
    try:
        for done, _ in PGD(UNBOUNDED).run(
            Supply([rows]), image_logits, batch_size=len(images), seed=seed
        ):
            stands[[row[place] for place in done["index"].tolist()]] = done["right"].cpu()
    except NonFiniteLoss:  # the attack itself will say so
        pass
    return stands


class _Attacked:
    """One attack on all images; goes on from its state."""

    def __init__(
        self, attack: Attack, image_logits: LogitsFn, data: Data, clean: Clean, kept: Kept
    ) -> None:
        self.attack, self.image_logits, self.data, self.clean = attack, image_logits, data, clean
        self.kept = kept
        self.state = AttackState(clean.right, bool(attack.conditions["last_iterate"]))
        self.state.load(kept.unfinished)

    def run(self, source: Source | None, precision: torch.dtype | None, seed: int, desc: str):
        state, count = self.state, len(self.clean.labels)
        to_row = {place: row for row, place in enumerate(self.data.places(0, count).tolist())}
        progress = tqdm(
            desc=desc,
            total=count,
            initial=int((state.lost != 0).sum()),
            unit="image",
            disable=ranks.hidden(),
        )
        for number, stage in enumerate(self.attack.stages, start=1):
            last = number == len(self.attack.stages)
            wanted = (state.lost == 0) & (state.done == number - 1)
            supply = Supply(self.data.rows(wanted, state.pool))
            began, unsaved, settled = self.data.clock(), 0, []
            decisions = stage.run(
                supply,
                self.image_logits,
                batch_size=self.clean.batch_size,
                sources=source.logits_fns if source else (),
                precision=precision,
                seed=seed,
            )
            for rows, pool in decisions:
                index = [to_row[place] for place in rows["index"].tolist()]
                state.decide(number, torch.tensor(index), rows, pool)
                out = select(rows, ~rows["right"] | last)
                settled.append({k: out[k].cpu() for k in ("index", "label", "right", "attacked")})
                progress.update(len(out["index"]))
                progress.set_postfix(robust=f"{100 * state.standing / count:.1f}%")
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
        if self.kept.adv and settled:
            columns = {name: column.numpy() for name, column in join(settled).items()}
            # a run that is killed before its state is saved writes the same file again
            with atomic_write(self.kept.adv / f"{self.state.files:06d}.npz") as temporary:
                with open(temporary, "wb") as file:
                    np.savez_compressed(file, **columns)
            self.state.files += 1
        self.state.save(self.kept.unfinished)


def _record(attack: str, threat_model: dict | None, right: Tensor, seconds: float) -> dict:
    return {
        "attack": attack,
        "threat_model": threat_model,
        "correct": int(right.sum()),
        "total": len(right),
        "accuracy": 100 * int(right.sum()) / len(right),
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
