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

SUBSET_SEED = 0  # draws the images of AT.TEST.SUBSET, the same for all methods and runs

# An attack without a bound must fool every model (Carlini et al. 2019, section 5).
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
    """Evaluate any model on clean images and under every attack of ``request``.

    An image is robust if the model is right on it and on every image that the attack tries in its
    place (PGD: every iterate). Images that the model gets wrong when clean are not attacked, unless
    the last iterate is what counts. An image that falls leaves the attack, and the next one takes
    its place, so that batches stay full. All verdicts are in float32. Random starts depend on the
    seed and on an image's place in the data only.

    Args:
        model: a module or function from images (B, 3, H, W) in [0, 1] to logits (B, C);
            differentiable, in evaluation mode. It normalises inside. What does not depend on the
            images (text features) is best computed beforehand. A model whose logits are random,
            which adapts to its images or cannot be differentiated must be a ``DefendedModel``,
            which says so; its draws depend on the seed and on an image's place in the data only.
        loader: batches for ``parse_batch``, in the same order in every pass; a ``DataLoader``, if
            the request is for a subset or a shard.
        parse_batch: from a batch to images and labels (B,) on the model's device; by default a
            batch is this pair.
        fingerprint: of the model: verdicts stored under another fingerprint are not read. Default:
            that of a module's weights and buffers. A function needs one if the request has a
            ``store`` or ``save_adv``.
        desc: label of the progress bar.
        on_clean: called with each batch's clean logits and labels, for the host's evaluator.

    Returns:
        Records, the clean one first, each JSON-ready, with keys attack, threat_model (None for
        clean), correct and total (images), accuracy (%), seconds (without data loading), split,
        images ("all", or size and seed of the subset), flags (see ``apd.evaluate.flags``) and
        checks (the measurements that raise flags). Those of attacks also have key (the name of
        their file in ``store``) and, if they have several stages, fell_to (images by stage).

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
    data = Data(*subset_loader(loader, places, request.shard), parse_batch)
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
    """The model's own fingerprint; "" if nothing is stored under it."""
    if not request.attacks or not (request.store or request.save_adv):
        return ""
    if not isinstance(model, nn.Module):
        raise UserError("to store what a function is attacked by, give its fingerprint")
    return model_fingerprint(model)


def clean_record(clean: Clean) -> dict:
    """The record of the clean pass; "commonest" is the share of the most frequent class, in %."""
    record = _record("clean", None, clean.right, clean.seconds)
    commonest = int(clean.labels.bincount().max())
    return {**record, "checks": {"commonest": 100 * commonest / record["total"]}}


def attack_record(
    request: EvaluationRequest, attack: Attack, key: str, state: AttackState, clean: Clean
) -> dict:
    """The record of an attack that has ended; ``key`` is the name of its files."""
    record = _record(attack.name, request.conditions(attack), state.lost == 0, state.seconds)
    attacked = max(int((state.lost != WRONG).sum()), 1)
    if len(attack.stages) > 1:
        record["fell_to"] = {
            stage.name: int((state.lost == number).sum())
            for number, stage in enumerate(attack.stages, start=1)
        }
    moved = state.moved if state.done.any() else None  # None: there was no image to attack
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
    """Give all records their split, images and flags, and store the verdicts of new ones.

    Args:
        fresh: of each attack that has ended just now: its record, files and state.
        labels: (N,), of the images.
        stands: by a record's key, the standing images of attacks that ended before; see
            ``add_flags``.
    """
    for record in records:
        record["split"], record["images"] = split, places.stated
    fresh_stands = {files.key: (state.lost == 0).numpy() for _, files, state in fresh}
    add_flags(records, {**(stands or {}), **fresh_stands})
    for record, files, state in fresh:
        files.write(Verdicts(record, files.identity, state.lost.numpy(), labels.numpy()))


class Places(NamedTuple):
    """Which of a data set's images an evaluation is about.

    Attributes:
        index: (N,) their places in the data set, ascending; None: all images.
        stated: how records state them: "all", or size and seed of the subset.
    """

    index: Tensor | None  # type: ignore[assignment]  # in place of tuple's method
    stated: str | dict


def places_of(loader: Iterable, count: int) -> Places:
    """The places of ``count`` images of the loader, drawn with a fixed seed; 0: of all images."""
    if not count or count >= len(loader.dataset):
        return Places(None, "all")
    generator = torch.Generator().manual_seed(SUBSET_SEED)
    index = torch.randperm(len(loader.dataset), generator=generator)[:count].sort()[0]
    return Places(index, {"count": count, "seed": SUBSET_SEED})


def subset_loader(
    loader: Iterable, places: Places, shard: Shard | None
) -> tuple[Iterable, Tensor | None]:
    """A loader of the images at ``places``, or of a shard of them, and their places (None: all).

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
    subset = DataLoader(
        Subset(loader.dataset, index.tolist()),
        batch_size=loader.batch_size,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
    )
    return subset, index


@dataclass
class Data:
    """A loader that gives the same batches in every pass, and a clock that stops while it loads.

    Attributes:
        index: (N,) places of the loader's images in the data set; None: it has all of them.
        parse_batch: from a batch to images and labels.
        loading_seconds: spent on loading so far.
    """

    loader: Iterable
    index: Tensor | None
    parse_batch: Callable[..., tuple[Tensor, Tensor]]
    loading_seconds = 0.0

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and labels of each batch; the time that loading takes is counted."""
        began = time.perf_counter()
        for batch in self.loader:
            images, labels = self.parse_batch(batch)
            self.loading_seconds += time.perf_counter() - began
            yield images, labels
            began = time.perf_counter()

    def places(self, first: int, count: int) -> Tensor:
        """The places in the data set of ``count`` images of the loader, from row ``first`` on."""
        if self.index is None:
            return torch.arange(first, first + count)
        return self.index[first : first + count]

    def clock(self) -> float:
        """A time in seconds that does not count loading."""
        return time.perf_counter() - self.loading_seconds

    def rows(self, selected: Tensor, pool: Rows | None) -> Iterator[Rows]:
        """The selected images, as rows for an attack, in the loader's order.

        Args:
            selected: (N,) bool, of the loader's images.
            pool: rows that a stored attack had begun; images among them get their columns.

        Yields:
            "index" (places in the data set), "image" and "label", and the pool's columns.
        """
        if pool:  # its rows are in no order; they must be in that of the images
            order = pool["index"].argsort()
            pool = {name: column[order.to(column.device)] for name, column in pool.items()}
        first = 0
        for images, labels in self.batches():
            row = selected[first : first + len(labels)].nonzero()[:, 0]
            index = self.places(first, len(labels))[row]
            row = row.to(images.device)
            rows = {"index": index, "image": images[row], "label": labels[row]}
            first += len(labels)
            if pool and len(index):
                in_pool = torch.isin(index, pool["index"].cpu())
                if in_pool.any():
                    begun = select(pool, torch.isin(pool["index"].cpu(), index))
                    columns = {
                        k: v.to("cpu" if k in CPU_COLUMNS else row.device) for k, v in begun.items()
                    }
                    yield {**select(rows, in_pool), **columns}
                rows = select(rows, ~in_pool)
            if len(rows["index"]):
                yield rows


def _clean_pass(
    model: LogitsFn, data: Data, request: EvaluationRequest, desc: str, on_clean
) -> Clean:
    """Predict the clean images.

    If the request has checks and attacks, also compare the logits of two passes over the first
    images, and attack the first ones that are right without a bound.
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
        desc=desc,
        total=len(data.loader) if isinstance(data.loader, Sized) else None,
        unit="batch",
        disable=ranks.progress_disabled(),
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
                random_logits, probabilities = _check_logits(model, images)
        attackable = not defended or defended.backward != "none"
        if checks and attackable and (missing := UNBOUNDED_IMAGES - sum(map(len, tested))):
            row = is_right.nonzero()[:missing, 0]
            tested.append(count + row)
            places = data.places(count, len(labels))[row]
            row = row.to(images.device)
            stood.append(_stand_unbounded(model, images[row], labels[row], places, request))
        predicted.append(logits.argmax(dim=1).cpu())
        label.append(labels.cpu())
        batch_size = max(batch_size, len(labels))
        count, right = count + len(labels), right + int(is_right.sum())
        progress.update()
        progress.set_postfix(clean=f"{100 * right / count:.1f}%")
    progress.close()
    if not count:
        raise UserError("there are no images to evaluate on")
    empty = torch.zeros(0, dtype=torch.long)
    return Clean(
        torch.cat(predicted),
        torch.cat(label),
        torch.cat([empty, *tested]),
        torch.cat([empty.bool(), *stood]),
        random_logits,
        probabilities,
        seconds,
        batch_size,
        str(digest),
    )


def _voted(
    model: DefendedModel, images: Tensor, labels: Tensor, places: Tensor, request: EvaluationRequest
) -> Tensor:
    """What several draws of the logits predict together, as one-hot logits (B, C).

    Args:
        places: (B,), of the images in the data set, which decide the draws.
    """
    size = batch_of(model, len(images))
    classes = model(images[:1]).shape[1]
    predicted = [
        predictions(model, *batch, seed=request.seed, draws=request.draws)
        for batch in zip(images.split(size), labels.split(size), places.split(size))
    ]
    return F.one_hot(torch.cat(predicted), classes).float()


def _stand_unbounded(
    model: LogitsFn, images: Tensor, labels: Tensor, places: Tensor, request: EvaluationRequest
) -> Tensor:
    """Which of the images stand under PGD without a bound: (B,) bool on the CPU."""
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
        for decided, _ in running:
            stands[[row[place] for place in decided["index"].tolist()]] = decided["right"].cpu()
    except NonFiniteLoss:  # the requested attack raises it too
        pass
    return stands


class _RunningAttack:
    """One attack on all images, which goes on from its stored state, if there is one."""

    def __init__(
        self, attack: Attack, model: LogitsFn, data: Data, clean: Clean, files: EvaluationFiles
    ) -> None:
        self.attack, self.model, self.data, self.clean = attack, model, data, clean
        self.files = files
        self.state = AttackState(clean.right, bool(attack.conditions["last_iterate"]))
        self.path = files.unfinished if files.folders else None  # of the state; None: not stored
        self.state.load(self.path)

    def run(self, request: EvaluationRequest, desc: str) -> None:
        """Bring ``state`` to its end, and store it at least once per batch."""
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
            is_last = number == len(self.attack.stages)
            selected = (state.lost == 0) & (state.done == number - 1)
            supply = Supply(self.data.rows(selected, state.pool))
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
                final = select(rows, ~rows["right"] | is_last)
                settled.append({k: final[k].cpu() for k in ("index", "label", "right", "attacked")})
                progress.update(len(final["index"]))
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
        """Store the state, and the images of the rows whose verdicts are final."""
        settled = [rows for rows in settled if len(rows["index"])]
        if self.files.adv and settled:
            columns = {name: column.numpy() for name, column in join(settled).items()}
            # if it is killed before the state is saved, the next process writes this file again
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


def check_range(images: Tensor) -> None:
    """Raise UserError unless ``images`` are (B, C, H, W) of floating point in [0, 1]."""
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


def _check_logits(model: LogitsFn, images: Tensor) -> tuple[bool, bool]:
    """Whether the same images give different logits, and whether logits are probabilities.

    Probabilities are rows within [0, 1] whose sums are 1, as in the checks of AutoAttack's code.
    """
    batch = images[: batch_of(model, len(images))]
    logits, again = model(batch), model(batch)
    in_range = bool((logits > -1e-5).all() and (logits < 1 + 1e-5).all())
    sums_are_1 = bool(((logits.sum(dim=1) - 1).abs() < 1e-4).all())
    return not torch.allclose(logits, again, rtol=1e-3, atol=1e-3), in_range and sums_are_1
