"""Names say what a value is: words that only say what happened to it are kept out."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
VAGUE = {"asked", "beside", "doubts", "fine", "forgive", "found", "hush", "kept", "said", "told"}
VAGUE |= {"given", "one", "seen", "taken", "wanted"}


def assigned(source: str) -> set[str]:
    """Names of variables, arguments, attributes, functions and classes that a module defines."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
    return names


def vague(source: str) -> set[str]:
    return {name for name in assigned(source) if name.strip("_").lower() in VAGUE}


@pytest.mark.parametrize("folder", ["apd", "datasets", "trainers"])
def test_names_say_what_a_value_is(folder):
    faults = {
        str(path.relative_to(ROOT)): names
        for path in sorted((ROOT / folder).rglob("*.py"))
        if (names := vague(path.read_text(encoding="utf-8")))
    }
    assert not faults


def test_vague_names_are_recognised_wherever_they_are_defined():
    source = "def told(fine=1):\n    for kept in []:\n        self._found = (asked := kept)\n"
    assert vague(source) == {"told", "fine", "kept", "_found", "asked"}
    assert not vague("found_runs = records.found(kept=1)\n")
