"""The site is built strict, has a page for each method, and loads nothing from other machines."""

import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import apd
from apd.methods import METHODS

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-docs/bin/python"  # scripts/docs.sh makes it


@pytest.fixture(scope="module")
def python():
    if PYTHON.exists():
        return str(PYTHON)
    if find_spec("mkdocs") and find_spec("mkdocstrings"):
        return sys.executable
    pytest.skip("MkDocs is not here: bash scripts/docs.sh installs it")


def build(python, config, target):
    command = [python, "-m", "mkdocs", "build", "--strict", "-f", config, "-d", target]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(python, tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = build(python, ROOT / "mkdocs.yml", folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_method_is_a_heading_of_a_page(site):
    pages = (site / "methods").glob("*.html")
    headings = " ".join(re.findall(r"<h1.*?>(.*?)<", " ".join(p.read_text() for p in pages)))
    assert METHODS.keys() <= set(re.findall(r"\w+", headings))


def test_every_public_name_has_its_docstring(site):
    page = (site / "docstrings.html").read_text()
    for name in set(apd.__all__) - {"__version__"}:
        first = getattr(apd, name).__doc__.split("\n")[0].split("`")[0].split("'")[0]
        assert f'id="{getattr(apd, name).__module__}.{name}"' in page, name
        assert first.strip()[:30] in page, name


def test_nothing_is_loaded_from_other_machines(site):
    loaded = re.compile(
        r"<(?:script|img|iframe)[^>]*src=\"?(https?:|//)|<link[^>]*stylesheet[^>]*href=\"?(https?:|//)"
    )
    for page in site.rglob("*.html"):
        assert not loaded.search(page.read_text(encoding="utf-8")), page
    assert (site / "search/search_index.json").stat().st_size > 100_000


@pytest.mark.parametrize(
    "added, told", [("[x](nowhere.md)", "nowhere.md"), ("[x](methods.md#nowhere)", "nowhere")]
)
def test_a_broken_link_fails(python, tmp_path, added, told):
    for path in ROOT.iterdir():
        if path.name not in ("docs", "mkdocs.yml", "site"):
            (tmp_path / path.name).symlink_to(path)
    shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("*.gz"))
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    with open(tmp_path / "docs/use.md", "a") as page:
        page.write(f"\n{added}\n")
    done = build(python, tmp_path / "mkdocs.yml", tmp_path / "site")
    assert done.returncode != 0 and told in done.stdout + done.stderr
