"""What MkDocs does not know of this clone: a hook of mkdocs.yml.

- The pages of methods, which stand in the navigation of themselves.
- Pages that lie outside ``docs/``, and one of the docstrings of all public names.
- Links to files that are no pages become plain text, so that a broken link to a page fails alone.
"""

from __future__ import annotations

import json
import os.path
import re
from pathlib import Path

import griffe
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {  # file of the clone -> page
    "README.md": "index.md",  # which says the same in short
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "scripts/mini_clip/README.md": "mini_clip.md",
    "docs/quickstart.ipynb": "quickstart.md",
}
# the notebook with its outputs, which are not committed
EXECUTED = ROOT / "output/quickstart.ipynb"
FILES = {page: file for file, page in PAGES.items() if file != "README.md"}
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)")


def on_config(config):
    """The pages of methods follow that of all, in its order; the others come last."""
    text = (ROOT / "docs/methods.md").read_text(encoding="utf-8")
    named = dict.fromkeys(re.findall(r"\((methods/\w+\.md)\)", text))
    others = sorted(f"methods/{path.name}" for path in (ROOT / "docs/methods").glob("*.md"))
    (reference,) = (part["Reference"] for part in config.nav if "Reference" in part)
    reference[0]["Methods"] += dict.fromkeys([*named, *others])
    return config


def on_files(files: Files, config) -> Files:
    for page, file in FILES.items():
        text = (ROOT / file).read_text(encoding="utf-8")
        text = notebook(json.loads(text)) if file.endswith(".ipynb") else text
        files.append(File.generated(config, page, content=text))
    files.append(File.generated(config, "docstrings.md", content=docstrings()))
    return files


def on_page_markdown(markdown: str, page, config, files: Files) -> str:
    """Links of a page, which are relative to its file in the clone, as those of the site."""
    own = page.file.src_uri
    folder = os.path.dirname(FILES.get(own, f"docs/{own}"))

    def linked(match: re.Match) -> str:
        text, link = match.groups()
        path, hash_, anchor = link.partition("#")
        if not path or re.match(r"[a-z]+:", link):
            return match[0]
        file = os.path.normpath(os.path.join(folder, path))
        if file in PAGES:
            target = PAGES[file]
            anchor = "" if target == "index.md" else anchor
        elif file.startswith("docs/") and not (ROOT / file).is_dir():
            target = file.removeprefix("docs/")
        elif (ROOT / file).exists():
            return text
        else:
            raise PluginError(f"{own}: there is no {file}")
        target = os.path.relpath(target, os.path.dirname(own) or ".")
        return f"[{text}]({target}{hash_ if anchor else ''}{anchor})"

    return LINK.sub(linked, markdown)


def notebook(committed: dict) -> str:
    """A notebook as Markdown, with the outputs of ``EXECUTED`` if its cells are the same ones."""
    cells = committed["cells"]
    if EXECUTED.exists():
        executed = json.loads(EXECUTED.read_text(encoding="utf-8"))["cells"]
        if [cell["source"] for cell in executed] == [cell["source"] for cell in cells]:
            cells = executed
    blocks = []
    for cell in cells:
        source = "".join(cell["source"])
        blocks.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        blocks += [shown(output) for output in cell.get("outputs", ())]
    return "\n\n".join(filter(None, blocks)) + "\n"


def shown(output: dict) -> str:
    """A cell's output as Markdown: a picture or text; "": neither."""
    data = output.get("data", {})
    if png := data.get("image/png"):
        return f'<img alt="output of the cell" src="data:image/png;base64,{"".join(png).strip()}">'
    text = "".join(output.get("text") or data.get("text/plain", ""))
    return f"```text\n{text.rstrip()}\n```" if text and output.get("name") != "stderr" else ""


def docstrings() -> str:
    """The page of all public names; PluginError if one of them has no docstring."""
    package = griffe.load("apd", search_paths=[str(ROOT)])
    names = [name for name in package.exports or [] if not str(name).startswith("_")]
    objects = {str(name): _target(package, str(name)) for name in names}
    members = {
        f"{name}.{key}": member
        for name, found in objects.items()
        for key, member in (found.members.items() if found.is_class else ())
        if member.is_function and not key.startswith("_")
    }
    silent = [name for name, found in (objects | members).items() if not found.docstring]
    if silent:
        raise PluginError(f"no docstring: {', '.join(silent)}")
    blocks = "\n\n".join(f"::: {found.path}" for found in objects.values())
    return f"# Docstrings of the Python API\n\n[The API in prose](api.md)\n\n{blocks}\n"


def _target(package, name: str):
    """The object behind a name of ``apd``, most of which are imported at first use."""
    member = package[name]
    return member.final_target if member.is_alias else member
