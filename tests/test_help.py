"""Commands tell their flags before they import what takes seconds."""

import subprocess
import sys

import pytest

COMMANDS = {
    "apd-export": "apd.export.command:main",
    "apd-train": "apd.train.command:main",
    "apd-eval": "apd.arguments.evaluate:main",
    "apd-sweep": "apd.sweep.command:main",
    "apd-table": "apd.tables.command:main",
    "apd-plot": "apd.figures.command:main",
    "apd-report": "apd.report.command:main",
}
SLOW = {"torch", "torchvision", "clip", "sklearn", "scipy", "torchattacks"}


def imported(code):
    """What of ``SLOW`` a process has imported in the end."""
    code = f"import sys\n{code}\nprint('imported', *sorted({SLOW!r} & sys.modules.keys()))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    return found.stdout.splitlines()[-1].split()[1:]


def test_the_package_is_light():
    assert imported("import apd") == []


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("flag", ["--help", "--no-such-flag"])
def test_flags_are_read_first(command, flag):
    module, _, name = COMMANDS[command].partition(":")
    code = f"""
from {module} import {name} as main
try:
    code = main([{flag!r}])
except SystemExit as end:
    code = end.code
assert code == {0 if flag == "--help" else 2}, code"""
    assert imported(code) == []
