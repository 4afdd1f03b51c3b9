"""README, CONTRIBUTING and docs/ are read in one go: paragraphs are short, links lead somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WRITTEN = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
# made by apd-table, or in which a plan stands as it was committed
MADE = {path for path in WRITTEN if "docs/study/" in path.as_posix()} - {
    ROOT / "docs/study/history.md"
}
PAGES = [path for path in WRITTEN if path not in MADE]
MOST_WORDS = 80


def paragraphs(text):
    """Paragraphs and items of lists, without code, tables and headings."""
    text = re.sub(r"^( *)```.*?^\1```$", "\n", text, flags=re.DOTALL | re.MULTILINE)
    for block in re.split(r"\n\s*\n", text):
        for item in re.split(r"\n(?= *(?:[-*]|\d+\.) )", block):
            lines = [line for line in item.splitlines() if not re.match(r"\s*[|#]|    ", line)]
            yield " ".join(" ".join(lines).split())


def name(path):
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_no_paragraph_is_long(path):
    long = [p for p in paragraphs(path.read_text("utf-8")) if len(p.split()) > MOST_WORDS]
    assert not long


def anchors(path):
    """Those of a page's headings, as GitHub and MkDocs make them."""
    text = re.sub(r"^```.*?^```$", "", path.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    for heading in re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE):
        yield re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_every_link_leads_somewhere(path):
    broken = []
    text = re.sub(r"`[^`\n]*`", "", path.read_text("utf-8"))
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith(("https://", "http://")):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        if not target.exists() or (anchor and anchor not in set(anchors(target))):
            broken.append(link)
    assert not broken
