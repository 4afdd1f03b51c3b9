"""Data sets by their CoOp names; importing this package registers them."""

from apd.datasets import digits, folder  # noqa: F401
