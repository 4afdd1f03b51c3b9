"""Data sets by their CoOp names; importing this package registers them."""

from apd.datasets import characters, coop, digits, folder, imagenet  # noqa: F401
