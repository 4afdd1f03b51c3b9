"""Imports point one way: down the layers of CONTRIBUTING.md, and never in a circle.

Imports inside of functions count as those at the top of a file do. Not seen are the two that go by
name: ``apd.jobs.worker`` (what workers preload) and ``apd.__getattr__`` (what needs PyTorch).
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {"apd": "apd", "trainers": "apd.trainers", "datasets": "apd.datasets"}
COMMANDS = ("command", "__main__", "cost", "arguments")  # what a user starts, in any package


def modules():
    """Name -> file, of all modules of the package."""
    found = {}
    for folder, package in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = ".".join([package, *path.relative_to(ROOT / folder).with_suffix("").parts])
            found[name.removesuffix(".__init__")] = path
    return found


def imports(tree, names):
    """The modules among ``names`` that a syntax tree imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            asked = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            asked = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in asked:  # a module, or something that a module has
            yield from [n for n in (name, name.rpartition(".")[0]) if n in names][:1]


@pytest.fixture(scope="module")
def graph():
    """Module -> the modules that it imports."""
    found = modules()
    trees = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in found.items()}
    return {name: {*imports(tree, found)} - {name} for name, tree in trees.items()}


def layers():
    """Place -> its number, the lowest first, as CONTRIBUTING.md lists them."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"## Layers\n.*?```text\n(.*?)```", text, flags=re.DOTALL)
    lines = [line.partition("#")[0].split() for line in block.splitlines()]
    return {place: number for number, places in enumerate(lines) for place in places}


def place_of(module):
    """Where a module stands in the list of layers: its package, or its name in apd/."""
    _, *parts = module.split(".")
    if not parts:
        return "apd"
    return "commands" if {parts[0], parts[-1]} & {*COMMANDS} and parts[0] != "train" else parts[0]


def circle(graph):
    """A list of nodes that import one another in turn; empty: there is none."""
    done = set()

    def visit(node, path):
        if node in path:
            return path[path.index(node) :]
        if node in done:
            return []
        for other in sorted(graph.get(node, ())):
            if found := visit(other, [*path, node]):
                return found
        done.add(node)
        return []

    return next((found for node in sorted(graph) if (found := visit(node, []))), [])


def test_a_circle_is_found():
    assert circle({"a": {"b", "c"}, "b": {"d"}, "c": set(), "d": {"b"}}) == ["b", "d"]
    assert circle({"a": {"b", "c"}, "b": {"d"}, "c": {"d"}, "d": set()}) == []


def test_imports_are_seen_wherever_they_stand():
    code = "import apd.a\ndef f():\n    from apd import b\n    from apd.c import something\n"
    names = {"apd", "apd.a", "apd.b", "apd.c"}
    assert {*imports(ast.parse(code), names)} == {"apd.a", "apd.b", "apd.c"}


def test_no_modules_import_one_another_in_a_circle(graph):
    assert circle(graph) == []


def test_no_packages_import_one_another_in_a_circle(graph):
    places = {}
    for module, imported in graph.items():
        others = {place_of(other) for other in imported} - {place_of(module)}
        places.setdefault(place_of(module), set()).update(others)
    assert circle(places) == []


def test_nothing_imports_from_a_higher_layer(graph):
    height = layers()
    places = {place_of(module) for module in graph}
    assert places == height.keys(), "CONTRIBUTING.md, Layers, has a line for each package"
    upward = [
        f"{module} imports {other}"
        for module, imported in graph.items()
        for other in imported
        if height[place_of(other)] > height[place_of(module)]
    ]
    assert upward == []


def test_training_does_not_reach_the_code_of_clusters(graph):
    reached, left = set(), [name for name in graph if place_of(name) in ("training", "trainers")]
    while left:
        if (module := left.pop()) not in reached:
            reached.add(module)
            left += graph[module]
    assert "apd.jobs.local" in reached and "apd.jobs.cluster" not in reached
