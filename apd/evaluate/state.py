"""What an attack has found so far, and the marks of what it was made on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType

import numpy as np
import torch
from torch import Tensor, nn

from apd.attacks.stream import Rows
from apd.errors import UserError
from apd.files import write_tensors
from apd.results.verdicts import WRONG

UNBOUNDED_IMAGES = 32  # that an attack is shown which may do anything


class AttackState:
    """Which of N images have fallen, and to what.

    Attributes:
        lost: (N,) 0: standing; k: fell to the attack's k-th stage; -1: wrong when clean.
        done: (N,) how many stages an image has behind it.
        zero, broken: (N,) whether a gradient was all zeros, or not finite.
        moved: (N,) whether the attacked image is another one than the clean image; None: some of
            it was found by a version that did not look.
        pool: rows under attack when this was saved.
        seconds: spent on the attack, without data loading.
        files: batches of adversarial images written.
    """

    def __init__(self, right: Tensor, attack_all: bool) -> None:
        count = len(right)
        self.lost = torch.zeros(count, dtype=torch.int8)
        if not attack_all:
            self.lost[~right] = WRONG
        self.done = torch.zeros(count, dtype=torch.int8)
        self.zero = torch.zeros(count, dtype=torch.bool)
        self.broken = torch.zeros(count, dtype=torch.bool)
        self.moved: Tensor | None = torch.zeros(count, dtype=torch.bool)
        self.pool: Rows | None = None
        self.seconds = 0.0
        self.files = 0

    @property
    def standing(self) -> int:
        return int((self.lost == 0).sum())

    def decide(self, stage: int, index: Tensor, rows: Rows, pool: Rows | None) -> None:
        """Enter the rows that ``stage`` (from 1) has decided; ``index``: their numbers from 0."""
        if self.moved is not None:
            moved = (rows["attacked"] != rows["image"]).flatten(1).any(1)
            self.moved[index] |= moved.cpu()
        rows = {name: rows[name].cpu() for name in ("right", "zero", "broken")}
        self.lost[index[~rows["right"]]] = stage
        self.done[index] = stage
        self.zero[index] |= rows["zero"]
        self.broken[index] |= rows["broken"]
        self.pool = pool

    def save(self, path: Path | None) -> None:
        """To ``path``, atomically; nowhere if None."""
        if path is None:
            return
        kept = {k: v.cpu() for k, v in (self.pool or {}).items() if k not in ("image", "label")}
        write_tensors(path, {**vars(self), "pool": kept or None})

    def load(self, path: Path | None) -> None:
        """Go on from ``path``, if there is such a file and it is whole."""
        if path is not None and path.exists():
            vars(self).update({"moved": None, **_load(path)})

    @classmethod
    def join(cls, paths: Sequence[Path]) -> AttackState:
        """Of all images, from the states of the shards, which are at an end."""
        parts = [_load(path) for path in paths]
        whole = cls(join_shards([part["lost"] for part in parts]) == 0, attack_all=True)
        for name in ("lost", "done", "zero", "broken"):
            setattr(whole, name, join_shards([part[name] for part in parts]))
        moved = [part["moved"] for part in parts if part.get("moved") is not None]
        whole.moved = join_shards(moved) if len(moved) == len(parts) else None
        whole.seconds = sum(part["seconds"] for part in parts)
        return whole


@dataclass
class Clean:
    """What the pass over N clean images has found.

    Attributes:
        predicted, labels: (N,) classes.
        tested: (K,) images that were right, in their order, from the first one on.
        stood: (K,) whether they did when the attack could do anything.
        random_logits: whether the same images gave different logits.
        probabilities: whether the model gives probabilities in place of logits.
        seconds: of the model, without data loading.
        batch_size: of the loader.
        digest: of the images and their labels.
    """

    predicted: Tensor
    labels: Tensor
    tested: Tensor
    stood: Tensor
    random_logits: bool
    probabilities: bool
    seconds: float
    batch_size: int
    digest: str

    @property
    def right(self) -> Tensor:
        return self.predicted == self.labels

    def checks(self) -> dict:
        """What a record under attack says of the model itself."""
        stood = self.stood[:UNBOUNDED_IMAGES].float()
        return {
            "random_logits": self.random_logits,
            "probabilities": self.probabilities,
            "unbounded": 100 * float(stood.mean()) if len(stood) else None,
        }

    def save(self, path: Path) -> None:
        write_tensors(path, vars(self))

    @classmethod
    def join(cls, paths: Sequence[Path], digest: str) -> Clean:
        """Of all images, from the shards' files."""
        parts = [_load(path) for path in paths]
        tested = torch.cat(
            [part["tested"] * len(parts) + first for first, part in enumerate(parts)]
        )
        order = tested.argsort()
        return cls(
            predicted=join_shards([part["predicted"] for part in parts]),
            labels=join_shards([part["labels"] for part in parts]),
            tested=tested[order],
            stood=torch.cat([part["stood"] for part in parts])[order],
            random_logits=any(part["random_logits"] for part in parts),
            # a version that did not look left none
            probabilities=all(part.get("probabilities", False) for part in parts),
            seconds=sum(part["seconds"] for part in parts),
            batch_size=max(part["batch_size"] for part in parts),
            digest=digest,
        )


def join_shards(parts: Sequence[Tensor]) -> Tensor:
    """One tensor of which ``parts`` are every n-th entry each."""
    whole = parts[0].new_empty(sum(map(len, parts)))
    for first, part in enumerate(parts):
        whole[first :: len(parts)] = part
    return whole


def _load(path: Path) -> dict:
    try:
        return torch.load(path, weights_only=True)
    except Exception as error:  # torch raises of every kind
        raise UserError(f"{path} is damaged: delete it and run again") from error


def digest(value) -> str:
    """Of plain data; any change in it changes the digest."""
    text = json.dumps(value, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


class ImageDigest:
    """Of images and labels that come in batches, whatever the size of these."""

    def __init__(self) -> None:
        self._parts = [hashlib.blake2b(digest_size=8) for _ in ("images", "labels")]

    def update(self, images: Tensor, labels: Tensor) -> None:
        for part, tensor in zip(self._parts, (images, labels)):
            part.update(tensor_bytes(tensor))

    def __str__(self) -> str:
        return "".join(part.hexdigest() for part in self._parts)


def fingerprint(model: nn.Module, names: Iterable[str] = ()) -> str:
    """Of all weights, prompts and class prompts of a model, and of ``names``."""
    found = hashlib.blake2b(digest_size=16)
    tensors = [*model.named_parameters(), *model.named_buffers()]
    for name, tensor in sorted(tensors, key=lambda pair: pair[0]):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor_bytes(tensor))
    found.update("\n".join(names).encode())
    return found.hexdigest()


def structure(model: nn.Module) -> Iterator[str]:
    """What a model computes with beside its weights, as texts for ``fingerprint``.

    Of each module: its class, the code of its ``forward`` if it is not PyTorch's own, and its plain
    attributes (numbers, texts, arrays, tensors that are no buffers; tuples, lists and dicts of
    these).
    """
    for name, module in model.named_modules():
        kind = type(module)
        code = getattr(kind.forward, "__code__", None)
        if kind.__module__.startswith("torch."):
            code = None
        yield f"{name} {kind.__qualname__} {_code(code) if code else ''}"
        for key, value in sorted(vars(module).items()):
            if key not in _OF_EVERY_MODULE and (text := _plain(value)) is not None:
                yield f"{name}.{key} {text}"


_OF_EVERY_MODULE = vars(nn.Module()).keys() - {"training"}


def _plain(value) -> str | None:
    """A text that tells plain values apart; None: it is another kind of object."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        value = torch.from_numpy(value)
    if isinstance(value, Tensor):
        contents = hashlib.blake2b(tensor_bytes(value), digest_size=16).hexdigest()
        return f"{value.dtype} {tuple(value.shape)} {contents}"
    if isinstance(value, (tuple, list)):
        return ", ".join(str(_plain(item)) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{key!r}: {_plain(item)}" for key, item in value.items())
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)
    return getattr(value, "__qualname__", None)  # a function: of activation, for example


def _code(code: CodeType) -> str:
    """A function's instructions with their names and constants, whatever its file and lines."""
    constants = [_code(c) if isinstance(c, CodeType) else _constant(c) for c in code.co_consts]
    return f"{code.co_code.hex()} {code.co_names} {constants}"


def _constant(value) -> str:
    # the order of a set's texts is another one in each process
    return repr(sorted(map(repr, value)) if isinstance(value, frozenset) else value)


def tensor_bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")
