"""The state of an attack, the result of the clean pass, and digests of models and images."""

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

UNBOUNDED_IMAGES = 32  # on which the attack without a bound is tried


class AttackState:
    """Which of N images have fallen, and to which stage of the attack.

    Files on the disk have these attributes, by name.

    Attributes:
        lost: (N,) int8; 0: the image stands; k: it fell to the k-th stage; -1: the model was wrong
            on the clean image, which is not attacked.
        done: (N,) int8, how many stages an image has gone through.
        zero, broken: (N,) bool, whether a gradient was all zeros, or not finite.
        moved: (N,) bool, whether the attack changed the image; None: not known, because an earlier
            version, which did not compare them, has attacked some of the images.
        pool: rows that are under attack.
        seconds: spent on the attack, without data loading.
        files: number of files of adversarial images written.
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
        """How many images stand."""
        return int((self.lost == 0).sum())

    def decide(self, stage: int, index: Tensor, rows: Rows, pool: Rows | None) -> None:
        """Enter the verdicts of a stage.

        Args:
            stage: its number, from 1.
            index: (K,) numbers, from 0, of the images that it has decided.
            rows: of these images: columns right, zero, broken, image and attacked.
            pool: the rows that the stage has not decided yet.
        """
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
        """Write it to ``path``, atomically; nowhere if None.

        Images and labels of the pool are left out: the loader has them.
        """
        if path is None:
            return
        pool = {k: v.cpu() for k, v in (self.pool or {}).items() if k not in ("image", "label")}
        write_tensors(path, {**vars(self), "pool": pool or None})

    def load(self, path: Path | None) -> None:
        """Go on from the state in ``path``, if there is such a file.

        Raises:
            UserError: the file is damaged.
        """
        if path is not None and path.exists():
            vars(self).update({"moved": None, **_read_state(path)})

    @classmethod
    def join(cls, paths: Sequence[Path]) -> AttackState:
        """The state of all images, from the files of all shards, which have ended."""
        shards = [_read_state(path) for path in paths]
        joined = cls(join_shards([shard["lost"] for shard in shards]) == 0, attack_all=True)
        for name in ("lost", "done", "zero", "broken"):
            setattr(joined, name, join_shards([shard[name] for shard in shards]))
        moved = [shard["moved"] for shard in shards if shard.get("moved") is not None]
        joined.moved = join_shards(moved) if len(moved) == len(shards) else None
        joined.seconds = sum(shard["seconds"] for shard in shards)
        return joined


@dataclass
class Clean:
    """Predictions on N clean images, and checks of the model.

    Files on the disk have these attributes, by name.

    Attributes:
        predicted, labels: (N,) classes.
        tested: (K,) numbers, ascending, of the first images that were right, on which the attack
            without a bound was tried.
        stood: (K,) bool, whether they stood.
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
        """(N,) bool."""
        return self.predicted == self.labels

    def checks(self) -> dict:
        """The checks of the model that the record of every attack states; unbounded is in %."""
        stood = self.stood[:UNBOUNDED_IMAGES].float()
        return {
            "random_logits": self.random_logits,
            "probabilities": self.probabilities,
            "unbounded": 100 * float(stood.mean()) if len(stood) else None,
        }

    def save(self, path: Path) -> None:
        """Write it to ``path``, atomically."""
        write_tensors(path, vars(self))

    @classmethod
    def join(cls, paths: Sequence[Path], digest: str) -> Clean:
        """The result of all images, from the shards' files; ``digest`` is of all images."""
        shards = [_read_state(path) for path in paths]
        tested = torch.cat(
            [shard["tested"] * len(shards) + first for first, shard in enumerate(shards)]
        )
        order = tested.argsort()
        return cls(
            predicted=join_shards([shard["predicted"] for shard in shards]),
            labels=join_shards([shard["labels"] for shard in shards]),
            tested=tested[order],
            stood=torch.cat([shard["stood"] for shard in shards])[order],
            random_logits=any(shard["random_logits"] for shard in shards),
            # files of earlier versions, which did not check this, lack it
            probabilities=all(shard.get("probabilities", False) for shard in shards),
            seconds=sum(shard["seconds"] for shard in shards),
            batch_size=max(shard["batch_size"] for shard in shards),
            digest=digest,
        )


def join_shards(shards: Sequence[Tensor]) -> Tensor:
    """One tensor (N,) from those of n shards, the k-th of which has every n-th entry from k on."""
    joined = shards[0].new_empty(sum(map(len, shards)))
    for first, shard in enumerate(shards):
        joined[first :: len(shards)] = shard
    return joined


def _read_state(path: Path) -> dict:
    """What ``save`` wrote, by attribute; UserError if the file is damaged."""
    try:
        return torch.load(path, weights_only=True)
    except Exception as error:  # torch raises many kinds
        raise UserError(f"{path} is damaged: delete it and run again") from error


def digest(value) -> str:
    """16 hexadecimal digits that depend on all of ``value``, which must be plain JSON data."""
    text = json.dumps(value, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


class ImageDigest:
    """A digest of images and labels that come in batches; the size of batches does not matter."""

    def __init__(self) -> None:
        self._hashes = [hashlib.blake2b(digest_size=8) for _ in ("images", "labels")]

    def update(self, images: Tensor, labels: Tensor) -> None:
        for hash_, tensor in zip(self._hashes, (images, labels)):
            hash_.update(tensor_bytes(tensor))

    def __str__(self) -> str:
        return "".join(hash_.hexdigest() for hash_ in self._hashes)


def fingerprint(model: nn.Module, names: Iterable[str] = ()) -> str:
    """32 hexadecimal digits that depend on all parameters and buffers of a model.

    Args:
        names: further texts that the digits depend on, such as class prompts or ``structure``.
    """
    hash_ = hashlib.blake2b(digest_size=16)
    tensors = [*model.named_parameters(), *model.named_buffers()]
    for name, tensor in sorted(tensors, key=lambda pair: pair[0]):
        hash_.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        hash_.update(tensor_bytes(tensor))
    hash_.update("\n".join(names).encode())
    return hash_.hexdigest()


def structure(model: nn.Module) -> Iterator[str]:
    """Texts that describe what a model computes with in addition to its weights.

    They are ``names`` for ``fingerprint``. Of each module: its class, the code of its ``forward``
    unless it is a module of PyTorch, and its plain attributes (numbers, texts, arrays, tensors
    that are no buffers; tuples, lists and dicts of these).
    """
    for name, module in model.named_modules():
        kind = type(module)
        code = getattr(kind.forward, "__code__", None)
        if kind.__module__.startswith("torch."):
            code = None
        yield f"{name} {kind.__qualname__} {_code_text(code) if code else ''}"
        for key, value in sorted(vars(module).items()):
            if key not in _OF_EVERY_MODULE and (text := _plain_text(value)) is not None:
                yield f"{name}.{key} {text}"


_OF_EVERY_MODULE = vars(nn.Module()).keys() - {"training"}


def _plain_text(value) -> str | None:
    """A text that differs for different plain values; None: ``value`` is not plain."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        value = torch.from_numpy(value)
    if isinstance(value, Tensor):
        contents = hashlib.blake2b(tensor_bytes(value), digest_size=16).hexdigest()
        return f"{value.dtype} {tuple(value.shape)} {contents}"
    if isinstance(value, (tuple, list)):
        return ", ".join(str(_plain_text(item)) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{key!r}: {_plain_text(item)}" for key, item in value.items())
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)
    return getattr(value, "__qualname__", None)  # a function: of activation, for example


def _code_text(code: CodeType) -> str:
    """A function's instructions with their names and constants, whatever its file and lines."""
    constants = [
        _code_text(value)
        if isinstance(value, CodeType)
        # sorted, because a set has another order in each process
        else repr(sorted(map(repr, value)) if isinstance(value, frozenset) else value)
        for value in code.co_consts
    ]
    return f"{code.co_code.hex()} {code.co_names} {constants}"


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The values of a tensor of any device, type and layout, in row-major order."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")
