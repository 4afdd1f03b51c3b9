"""Names to classes."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from apd.errors import UserError, similar


class UnknownName(UserError, ValueError):
    """A name that is not among the known ones."""


class Registry:
    """Classes (or functions) under their own names.

    ``@REGISTRY.register()`` or ``REGISTRY.register(cls)``; a name is taken only once, unless
    ``force`` is set. ``get`` and ``register`` raise KeyError.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._objects: dict[str, Any] = {}

    def register(self, obj=None, force: bool = False):
        if obj is None:
            return lambda decorated: self.register(decorated, force)
        if obj.__name__ in self._objects and not force:
            raise KeyError(f"{self._name} registry: {obj.__name__} is taken")
        self._objects[obj.__name__] = obj
        return obj

    def get(self, name: str):
        if name not in self._objects:
            raise KeyError(f"{self._name} registry: there is no {name}")
        return self._objects[name]

    def registered_names(self) -> list[str]:
        return list(self._objects)


def check_availability(requested: str, available: Collection[str]) -> None:
    """Raise UnknownName, which is a ValueError, with the nearest names if there is no such one."""
    if requested in available:
        return
    near = similar(requested, available, 0.4)
    hint = f"did you mean {', '.join(near)}?" if near else f"there are {', '.join(available)}"
    raise UnknownName(f"unknown name '{requested}': {hint}")
