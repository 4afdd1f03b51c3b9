"""Imports what every job needs; jobs are forked from a process that has imported this module."""

import contextlib

import sklearn.metrics  # noqa: F401

import apd.datasets
import apd.host
import apd.trainers  # noqa: F401
from apd.clip.text import tokenizer

tokenizer()
with contextlib.suppress(ImportError):
    import torch.utils.tensorboard  # noqa: F401
