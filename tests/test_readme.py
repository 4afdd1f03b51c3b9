"""What the README shows works as it stands there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_paths_that_the_readme_names_exist():
    named = set(re.findall(r"(?:scripts|configs|benchmarks|apd|trainers)/[\w/.-]*\w", README))
    missing = {path for path in named if not (ROOT / path).exists()}
    assert missing == {"trainers/trades_ivlp.py"}  # the one that its reader is to write


def test_the_method_in_one_file_trains(run, tmp_path):
    (method,) = re.findall(r"```python\n(# trainers/trades_ivlp.*?)```", README, flags=re.DOTALL)
    exec(method, {"__name__": "trades_ivlp"})
    assert run("TradesIVLP", tmp_path).code == 0
