"""Commands tell their flags before they import what takes seconds."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

SETUP = (Path(__file__).parents[1] / "setup.py").read_text(encoding="utf-8")
COMMANDS = dict(re.findall(r'"(apd-\w+) = ([\w.]+:\w+)"', SETUP))
SLOW = {"torch", "torchvision", "clip", "sklearn", "scipy", "torchattacks"}


def imported(code):
    """What of ``SLOW`` a process has imported in the end."""
    code = f"import sys\n{code}\nprint('imported', *sorted({SLOW!r} & sys.modules.keys()))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    return found.stdout.splitlines()[-1].split()[1:]


def test_all_commands_are_here():
    assert len(COMMANDS) == SETUP.count(" = apd.") and {"apd-doctor", "apd-convert"} < {*COMMANDS}


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
