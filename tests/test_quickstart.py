"""docs/quickstart.ipynb: it runs, has no outputs, and uses what docs/api.md lists only."""

import ast
import json
from pathlib import Path

import pytest

import apd

NOTEBOOK = Path(__file__).parents[1] / "docs" / "quickstart.ipynb"
SHORT = {"APD_QUICKSTART_EPOCHS": "2", "APD_QUICKSTART_IMAGES": "4"}


def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_no_outputs_are_committed():
    cells = code_cells(json.loads(NOTEBOOK.read_text(encoding="utf-8")))
    assert len(cells) > 5
    assert [cell["outputs"] for cell in cells] == [[]] * len(cells)
    assert [cell["execution_count"] for cell in cells] == [None] * len(cells)


def test_it_uses_public_names_only():
    cells = code_cells(json.loads(NOTEBOOK.read_text(encoding="utf-8")))
    tree = ast.parse("\n".join("".join(cell["source"]) for cell in cells))
    modules, names = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(node.module)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            names |= {node.attr} if node.value.id == "apd" else set()
    assert {name for name in modules if name.split(".")[0] == "apd"} == {"apd"}
    assert {"load", "zero_shot", "robustness"} <= names <= set(apd.__all__)


def test_it_runs(tmp_path, monkeypatch):
    """With few epochs and images, so that its numbers mean nothing."""
    nbformat = pytest.importorskip("nbformat", reason="pip install 'apd-clip[notebook]'")
    nbclient = pytest.importorskip("nbclient", reason="pip install 'apd-clip[notebook]'")
    pytest.importorskip("ipykernel", reason="pip install 'apd-clip[notebook]'")
    for name, value in SHORT.items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    place = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=place).execute()
    outputs = [output for cell in code_cells(notebook) for output in cell["outputs"]]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    text = "".join(output.get("text", "") for output in outputs if output.get("name") == "stdout")
    assert len(pictures) == 2
    for name in ("CLIP", "APD"):
        assert f"{name} on test\n" in text
    assert text.count("autoattack") == 2 and "t-shirt" in text
    run = tmp_path / "output" / "quickstart" / "APD_2epochs"
    results = json.loads((run / "results.json").read_text())
    assert results["method"] == "APD" and results["dataset"] == "Clothing"
    assert (tmp_path / "output/quickstart/saved_2epochs/prompts.safetensors").is_file()
