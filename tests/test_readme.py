"""What the README shows works as it stands there."""

import re
from pathlib import Path

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_paths_that_the_readme_names_exist():
    root = Path(__file__).parent.parent
    named = set(re.findall(r"(?:scripts|configs|benchmarks|apd|trainers)/[\w/.-]*\w", README))
    missing = {p for p in named if not (root / p).exists()}
    assert missing <= {"trainers/trades_ivlp.py"}  # the one that its reader is to write
