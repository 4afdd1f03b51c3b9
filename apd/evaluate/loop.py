"""Clean accuracy of a model on a data loader, and accuracy under attack."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from apd import ranks
from apd.attacks import PGD, Attack, DefendedModel, ThreatModel
from apd.attacks.defended import batch_of, predictions
from apd.attacks.pgd import correct
from apd.attacks.stream import CPU_COLUMNS, Rows, Supply, join, select
from apd.errors import NonFiniteLoss, UserError
from apd.evaluate.files import CLEAN, EvaluationFiles, evaluation_files
from apd.evaluate.flags import add_flags
from apd.evaluate.request import WHITE_BOX, EvaluationRequest, LogitsFn, Shard
from apd.evaluate.state import UNBOUNDED_IMAGES, AttackState, Clean, ImageDigest
from apd.evaluate.state import fingerprint as model_fingerprint
from apd.files import atomic_write
from apd.precision import DTYPES
from apd.results.verdicts import WRONG, Verdicts

SUBSET_SEED = 0  # of the images of AT.TEST.SUBSET: the same for all methods and runs

# An attack that may do anything must fool every model (Carlini et al. 2019, section 5).
UNBOUNDED = ThreatModel("linf", eps=255, alpha=32, steps=20, loss="margin")


def evaluate(
    model: LogitsFn,
    loader: Iterable,
    request: EvaluationRequest,
    *,
    parse_batch: Callable[..., tuple[Tensor, Tensor]] = tuple,
    fingerprint: str = "",
    desc: str = "evaluation",
    on_clean: Callable[[Tensor, Tensor], None] | None = None,
) -> list[dict]:
    """Records of the clean evaluation and of every attack of ``request``, of any model.

    An image is robust if the model is right on it, and on every image that the attack came by
    (PGD: on every iterate). Images that are wrong when clean are not attacked, unless the last
    iterate is what counts. Images leave an attack as they fall, and others take their place, so
    batches stay full. All verdicts are in float32. Random starts depend on the seed and on an
    image's place in the data only.

    Args:
        model: a module or function from images (B, 3, H, W) in [0, 1] to logits (B, C);
            differentiable, in evaluation mode. It normalises inside. What does not depend on the
            images (text features) is best computed beforehand. One whose logits are random, that
            is tuned to its images or cannot be differentiated says so (``DefendedModel``); its
            draws depend on the seed and on an image's place in the data only.
        loader: batches for ``parse_batch``, in the same order in every pass; a ``DataLoader``, if
            the request is for a subset or a shard.
        parse_batch: gives images and labels (B,) on the model's device; by default a batch is
            such a pair.
        fingerprint: of the model, so that what is stored of one is never taken for another's;
            default: of a module's weights and buffers. A function has to bring its own if the
            request has a ``store`` or ``save_adv``.
        desc: label of the progress bar.
        on_clean: called with each batch's clean logits and labels, for the host's evaluator.

    Returns:
        [clean, ...], each JSON-ready, with keys attack, threat_model (None for clean), correct and
        total (images), accuracy (%), seconds (without data loading), split, images ("all", or
        size and seed of the subset) and flags (see ``apd.evaluate.flags``); those of attacks also
        have key (of their file in ``store``) and, with several stages, fell_to. checks has what
        flags are raised by.

    Raises:
        UserError: no images, images outside [0, 1], a function without a fingerprint.
        NonFiniteLoss: logits that are NaN or infinite.
        ValueError: the request's source is a name only.
    """
    if request.source != WHITE_BOX and not request.source.logits_fns:
        raise ValueError(f"the models of source {request.source.name} are not loaded")
    request = request.of(model)
    fingerprint = fingerprint or _fingerprint(model, request)
    places = places_of(loader, request.subset)
    data = Data(*part_of(loader, places, request.shard), parse_batch)
    clean = _clean_pass(model, data, request, f"{desc}, clean", on_clean)

    def files_of(attack: Attack) -> EvaluationFiles:
        return evaluation_files(request, attack, fingerprint, clean.digest, places.stated)

    records, fresh, stands = [clean_record(clean)], [], {}
    if request.shard:
        clean.save(files_of(CLEAN).finished)
    for attack in request.attacks:
        files = files_of(attack)
        if files.ended:
            if not request.shard:
                verdicts = files.read()
                records.append(verdicts.record)
                stands[files.key] = verdicts.stands
            continue
        running = _RunningAttack(attack, model, data, clean, files)
        running.run(request, f"{desc}, {attack.name}")
        if request.shard:
            files.unfinished.rename(files.finished)
        records.append(attack_record(request, attack, files.key, running.state, clean))
        fresh.append((records[-1], files, running.state))
    finish(records, request.split, places, [] if request.shard else fresh, clean.labels, stands)
    return records


def _fingerprint(model: LogitsFn, request: EvaluationRequest) -> str:
    if not request.attacks or not (request.store or request.save_adv):
        return ""
    if not isinstance(model, nn.Module):
        raise UserError("to store what a function is attacked by, give its fingerprint")
    return model_fingerprint(model)


def clean_record(clean: Clean) -> dict:
    record = _record("clean", None, clean.right, clean.seconds)
    commonest = int(clean.labels.bincount().max())
    return {**record, "checks": {"commonest": 100 * commonest / record["total"]}}


def attack_record(
    request: EvaluationRequest, attack: Attack, key: str, state: AttackState, clean: Clean
) -> dict:
    """Of an attack that is at its end; ``key`` of its files."""
    record = _record(attack.name, request.conditions(attack), state.lost == 0, state.seconds)
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
    return {**record, "key": key}


def finish(
    records: list[dict],
    split: str,
    places: Places,
    fresh: list[tuple[dict, EvaluationFiles, AttackState]],
    labels: Tensor,
    stands: dict[str, np.ndarray] | None = None,
) -> None:
    """Say of all records which images they are about and what is odd; keep the ``fresh`` ones.

    ``stands``: of the records that are not fresh, see ``add_flags``.
    """
    for record in records:
        record["split"], record["images"] = split, places.stated
    of_fresh = {files.key: (state.lost == 0).numpy() for _, files, state in fresh}
    add_flags(records, {**(stands or {}), **of_fresh})
    for record, files, state in fresh:
        files.write(Verdicts(record, files.identity, state.lost.numpy(), labels.numpy()))


class Places(NamedTuple):
    """Which of a data set's images an evaluation is about."""

    index: Tensor | None  # type: ignore[assignment]  # None: all
    stated: str | dict  # in records: "all", or size and seed of the subset


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
                    columns = {
                        k: v.to("cpu" if k in CPU_COLUMNS else on.device) for k, v in kept.items()
                    }
                    yield {**select(rows, under), **columns}
                rows = select(rows, ~under)
            if len(rows["index"]):
                yield rows


def _clean_pass(
    model: LogitsFn, data: Data, request: EvaluationRequest, desc: str, on_clean
) -> Clean:
    """The pass over the clean images.

    With the request's checks it also asks whether logits are random, and which of the first images
    stand when the attack may do anything.
    """
    checks = request.checks and bool(request.attacks)
    defended = model if isinstance(model, DefendedModel) else None
    predicted: list[Tensor] = []
    label: list[Tensor] = []
    tested: list[Tensor] = []
    stood: list[Tensor] = []
    seconds, batch_size, count, right = 0.0, 0, 0, 0
    random_logits = probabilities = False
    digest = ImageDigest()
    progress = tqdm(
        desc=desc, total=_length(data.loader), unit="batch", disable=ranks.progress_disabled()
    )
    for images, labels in data.batches():
        check_range(images)
        digest.update(images, labels)
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            began = time.perf_counter()
            if defended:
                places = data.places(count, len(labels))
                logits = _voted(defended, images, labels, places, request)
            else:
                logits = model(images)
            check_classes(logits, labels)
            is_right = correct(logits, labels).cpu()
            seconds += time.perf_counter() - began
            if on_clean:
                on_clean(logits, labels)
            if checks and not label:
                part = images[: batch_of(model, len(images))]
                twice = [model(part) for _ in range(2)]
                random_logits = not torch.allclose(twice[0], twice[1], rtol=1e-3, atol=1e-3)
                probabilities = _are_probabilities(twice[0])
        attackable = not defended or defended.backward != "none"
        if checks and attackable and (left := UNBOUNDED_IMAGES - sum(map(len, tested))):
            some = is_right.nonzero()[:left, 0]
            tested.append(count + some)
            places = data.places(count, len(labels))[some]
            on = some.to(images.device)
            stood.append(_unbounded(model, images[on], labels[on], places, request))
        predicted.append(logits.argmax(dim=1).cpu())
        label.append(labels.cpu())
        batch_size = max(batch_size, len(labels))
        count, right = count + len(labels), right + int(is_right.sum())
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
        probabilities,
        seconds,
        batch_size,
        str(digest),
    )


def _voted(
    model: DefendedModel, images: Tensor, labels: Tensor, places: Tensor, request: EvaluationRequest
) -> Tensor:
    """The verdict on each image, (B, C), one-hot: its draws have no logits in common."""
    size = batch_of(model, len(images))
    classes = model(images[:1]).shape[1]
    predicted = [
        predictions(model, *batch, seed=request.seed, draws=request.draws)
        for batch in zip(images.split(size), labels.split(size), places.split(size))
    ]
    return F.one_hot(torch.cat(predicted), classes).float()


def _unbounded(
    model: LogitsFn, images: Tensor, labels: Tensor, places: Tensor, request: EvaluationRequest
) -> Tensor:
    """Which of the images stand when the attack may do anything, (B,) bool on the CPU."""
    stands = torch.zeros(len(images), dtype=torch.bool)
    row = {place: i for i, place in enumerate(places.tolist())}
    rows = {"index": places, "image": images, "label": labels}
    running = PGD(UNBOUNDED).run(
        Supply([rows]),
        model,
        batch_size=batch_of(model, len(images)),
        seed=request.seed,
        draws=replace(request.draws, eot=1),
    )
    try:
        for done, _ in running:
            stands[[row[place] for place in done["index"].tolist()]] = done["right"].cpu()
    except NonFiniteLoss:  # the attack itself will say so
        pass
    return stands


class _RunningAttack:
    """One attack on all images; goes on from its state."""

    def __init__(
        self, attack: Attack, model: LogitsFn, data: Data, clean: Clean, files: EvaluationFiles
    ) -> None:
        self.attack, self.model, self.data, self.clean = attack, model, data, clean
        self.files = files
        self.state = AttackState(clean.right, bool(attack.conditions["last_iterate"]))
        self.path = files.unfinished if files.folders else None  # of the state
        self.state.load(self.path)

    def run(self, request: EvaluationRequest, desc: str) -> None:
        state, count = self.state, len(self.clean.labels)
        to_row = {place: row for row, place in enumerate(self.data.places(0, count).tolist())}
        progress = tqdm(
            desc=desc,
            total=count,
            initial=int((state.lost != 0).sum()),
            unit="image",
            disable=ranks.progress_disabled(),
        )
        for number, stage in enumerate(self.attack.stages, start=1):
            last = number == len(self.attack.stages)
            wanted = (state.lost == 0) & (state.done == number - 1)
            supply = Supply(self.data.rows(wanted, state.pool))
            began, unsaved, settled = self.data.clock(), 0, []
            decisions = stage.run(
                supply,
                self.model,
                batch_size=batch_of(self.model, self.clean.batch_size),
                sources=request.source.logits_fns,
                precision=DTYPES[request.precision],
                seed=request.seed,
                draws=request.draws,
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
        if self.files.adv and settled:
            columns = {name: column.numpy() for name, column in join(settled).items()}
            # a run that is killed before its state is saved writes the same file again
            with atomic_write(self.files.adv / f"{self.state.files:06d}.npz") as temporary:
                with open(temporary, "wb") as file:
                    np.savez_compressed(file, **columns)  # type: ignore[arg-type]
            self.state.files += 1
        self.state.save(self.path)


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
    return len(loader) if isinstance(loader, Sized) else None


def check_range(images: Tensor) -> None:
    if images.dim() != 4 or not images.is_floating_point():
        raise UserError(
            f"images are {tuple(images.shape)} of {images.dtype}, but must be (B, C, H, W) of "
            "floating point in [0, 1]: torchvision's ToTensor makes such images"
        )
    low, high = images.min().item(), images.max().item()
    if not (low >= 0 and high <= 1):  # NaN is out of range too
        raise UserError(
            f"images have values from {low:.3g} to {high:.3g}, but must be in [0, 1]: the model "
            "normalises, so take normalize out of the transforms (of a run: INPUT.TRANSFORMS)"
        )


def check_classes(logits: Tensor, labels: Tensor) -> None:
    """Raise UserError unless ``logits`` are (B, C), and ``labels`` (B,) are classes of them."""
    count = len(labels)
    if logits.dim() != 2 or len(logits) != count or not logits.is_floating_point():
        raise UserError(
            f"the model gives {tuple(logits.shape)} of {logits.dtype} for {count} images, but must "
            "give logits (B, C) of floating point"
        )
    if labels.dim() != 1 or labels.is_floating_point() or labels.is_complex():
        raise UserError(
            f"labels are {tuple(labels.shape)} of {labels.dtype}, but must be (B,) whole numbers: "
            "one class per image"
        )
    low, high, classes = int(labels.min()), int(labels.max()), logits.shape[1]
    if low < 0 or high >= classes:
        raise UserError(
            f"labels are from {low} to {high}, but the model has {classes} classes, 0 to "
            f"{classes - 1}: the data has other classes than the model"
        )


def _are_probabilities(logits: Tensor) -> bool:
    """Whether each row is one of probabilities (as in AutoAttack's own checks)."""
    in_range = bool((logits > -1e-5).all() and (logits < 1 + 1e-5).all())
    return in_range and bool(((logits.sum(dim=1) - 1).abs() < 1e-4).all())
