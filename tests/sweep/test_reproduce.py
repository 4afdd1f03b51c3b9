"""docs/reproduce.md: its commands are read, and have as many cells as it says."""

import re
import shlex
from pathlib import Path

import pytest

from apd.sweep import estimate
from apd.sweep.command import parse_args, read_jobs

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/reproduce.md").read_text(encoding="utf-8")
ROW = r"^\|.*?\| `(SWEEPS/[^`]+)`.*?\| ([\d,]+)(?: each)? \| ([\d,–]*) ?\|$"
ROWS = re.findall(ROW, TEXT, re.M)  # command, cells, hours
FAPS = re.search(r"`FAPS` is `([^`]+)`", TEXT).group(1)


def words(command):
    return shlex.split(command.replace("SWEEPS", "configs/sweeps").replace("FAPS", FAPS))


@pytest.fixture(autouse=True)
def in_the_clone(monkeypatch):
    import apd

    apd.register()
    monkeypatch.chdir(ROOT)


def test_the_tables_commands():
    assert len(ROWS) >= 20
    cells = {command: len(read_jobs(parse_args(words(command)))) for command, _, _ in ROWS}
    assert cells == {command: int(count.replace(",", "")) for command, count, _ in ROWS}


def test_hours():
    """Of one cheap row; the others come from the same program."""
    ((command, hours),) = [(c, h) for c, _, h in ROWS if c == "SWEEPS/domain_shift.yaml"]
    cells = read_jobs(parse_args(words(command)))
    assert sum(map(estimate.gpu_seconds, cells)) / 3600 == pytest.approx(int(hours), abs=0.5)


def test_the_settings_are_config_keys():
    """``--set`` of the shell variables."""
    found = re.findall(r'^(\w+)="(.*?)"', TEXT, re.M | re.S)
    assert [name for name, _ in found] == ["TECOA", "LAST", "CLEAN", "MAPLE"]
    for _, options in found:
        command = ["configs/sweeps/main_table.yaml", "--dataset", "dtd", "--seed", "1"]
        argv = [*command, "--trainer", "MaPLe", *shlex.split(options.replace("\\\n", " "))]
        (cell,) = read_jobs(parse_args(argv))
        cell.state()  # reads its config
