"""Files, logging, running averages."""

from __future__ import annotations

import json
import os
import platform
import random
import sys
import time
import warnings
from collections import defaultdict
from pathlib import Path

import numpy as np
import PIL
import torch
import torchvision
from torch import Tensor, nn

from apd.files import atomic_write


def mkdir_if_missing(dirname: str) -> None:
    os.makedirs(dirname, exist_ok=True)


def check_isfile(fpath: str) -> bool:
    """Whether ``fpath`` is a file; warns if it is not."""
    exists = os.path.isfile(fpath)
    if not exists:
        warnings.warn(f"there is no file {fpath}")
    return exists


def write_json(obj, fpath: str) -> None:
    """Write ``obj`` with an indent of 4, atomically; missing folders are made."""
    with atomic_write(fpath) as temporary:
        temporary.write_text(json.dumps(obj, indent=4), encoding="utf-8")


def listdir_nohidden(path: str, sort: bool = False) -> list[str]:
    """Names in a folder, without those that begin with a dot."""
    names = [name for name in os.listdir(path) if not name.startswith(".")]
    return sorted(names) if sort else names


def tolist_if_not(x) -> list:
    return x if isinstance(x, list) else [x]


def set_random_seed(seed: int) -> None:
    """Seed python, numpy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def collect_env_info() -> str:
    """Versions and device, one per line."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return "\n".join(
        f"{name}: {value}"
        for name, value in {
            "python": f"{platform.python_version()} on {platform.platform()}",
            "torch": f"{torch.__version__}, device {device}, {torch.get_num_threads()} threads",
            "torchvision": torchvision.__version__,
            "numpy": np.__version__,
            "pillow": PIL.__version__,
        }.items()
    )


def count_num_param(model: nn.Module | None = None, params=None) -> int:
    """Number of weights in a model, or in an iterable of parameters or groups of one each."""
    if model is not None:
        return sum(p.numel() for p in model.parameters())
    if params is None:
        raise ValueError("count_num_param needs a model or parameters")
    return sum((p["params"] if isinstance(p, dict) else p).numel() for p in params)


class Logger:
    """A stdout that also writes to a file (``fpath``; None: to none)."""

    def __init__(self, fpath: str | None = None) -> None:
        self.console = sys.stdout
        self.file = None
        if fpath is not None:
            Path(fpath).parent.mkdir(parents=True, exist_ok=True)
            # each line is written at once, so that tail -f shows it and a killed run leaves it
            self.file = open(fpath, "a", buffering=1, encoding="utf-8")

    def write(self, msg: str) -> int:
        if self.file is not None:
            self.file.write(msg)
        return self.console.write(msg)

    def flush(self) -> None:
        self.console.flush()
        if self.file is not None:
            self.file.flush()

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
            self.file = None

    def __enter__(self) -> Logger:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def __getattr__(self, name: str):
        if name == "console":  # not yet set: do not look it up in itself
            raise AttributeError(name)
        return getattr(self.console, name)


def setup_logger(output: str | None = None) -> None:
    """Copy stdout to ``output``, a .txt or .log file, or to ``output/log.txt``.

    An existing log is kept: the new one gets the date as a suffix.
    """
    if output is None:
        return
    path = output if output.endswith((".txt", ".log")) else os.path.join(output, "log.txt")
    if os.path.exists(path):
        path += time.strftime("-%Y-%m-%d-%H-%M-%S")
    sys.stdout = Logger(path)


class AverageMeter:
    """The last value (``val``), sum, count and mean (``avg``); with ``ema`` a moving average."""

    def __init__(self, ema: bool = False) -> None:
        self.ema = ema
        self.reset()

    def reset(self) -> None:
        self.val = self.avg = self.sum = 0.0
        self.count = 0

    def update(self, val: float | Tensor, n: int = 1) -> None:
        self.val = val.item() if isinstance(val, Tensor) else val
        self.sum += self.val * n
        self.count += n
        self.avg = 0.9 * self.avg + 0.1 * self.val if self.ema else self.sum / self.count


class MetricMeter:
    """An ``AverageMeter`` for each name; prints as ``name val (avg)``."""

    def __init__(self, delimiter: str = " ") -> None:
        self.meters: defaultdict[str, AverageMeter] = defaultdict(AverageMeter)
        self.delimiter = delimiter

    def update(self, input_dict: dict | None) -> None:
        if input_dict is None:
            return
        if not isinstance(input_dict, dict):
            raise TypeError(f"a dict of values is needed, not {type(input_dict).__name__}")
        for name, value in input_dict.items():
            self.meters[name].update(value)

    def __str__(self) -> str:
        parts = (f"{name} {m.val:.4f} ({m.avg:.4f})" for name, m in self.meters.items())
        return self.delimiter.join(parts)
