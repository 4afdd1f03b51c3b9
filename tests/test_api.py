"""What is public stands in ``apd.__all__`` and on the page of the API, with a docstring."""

import re
from pathlib import Path

import apd

PAGE = (Path(__file__).parents[1] / "docs/api.md").read_text(encoding="utf-8")


def test_the_page_names_all_that_is_public_and_nothing_else():
    named = set(re.findall(r"`apd\.(\w+)`", PAGE))
    assert named == set(apd.__all__)
    headings = " ".join(re.findall(r"^## (.*)$", PAGE, flags=re.MULTILINE))
    assert set(re.findall(r"`apd\.(\w+)`", headings)) == named - {"__version__"}


def test_all_that_is_public_is_there_with_a_docstring():
    for name in set(apd.__all__) - {"__version__"}:
        assert getattr(apd, name).__doc__, name


def test_the_page_names_all_public_members_of_the_classifier():
    of_module = set(dir(apd.PromptedClassifier.__mro__[1]))  # torch.nn.Module's
    public = {name for name in vars(apd.PromptedClassifier) if not name.startswith("_")}
    section = PAGE.split("## `apd.PromptedClassifier`")[1].split("\n## ")[0]
    rows = set(re.findall(r"^\| `(\w+)", section, flags=re.MULTILINE))
    assert rows == public - of_module
