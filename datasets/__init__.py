"""Data sets by their CoOp names; importing this package registers them."""

from apd.datasets import characters, digits, folder  # noqa: F401
