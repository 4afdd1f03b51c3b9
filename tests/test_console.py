"""Work goes on whether or not anybody reads what it prints."""

import os
import subprocess
import sys

import pytest

from apd.console import Console, lasting
from apd.results import is_complete


def shell(line, argv):
    """What a command of this program does behind ``line``, as in ``{} | head -1``."""
    program = "import sys; from apd.train.command import main; sys.exit(main(sys.argv[1:]))"
    words = " ".join(f"'{word}'" for word in [sys.executable, "-c", program, *argv])
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", line.format(words)],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, sys.path))},
    )


@pytest.mark.parametrize("line", ["{} >&- 2>&-", "{} 2>&1 | head -1"])
def test_training_goes_on_and_its_log_is_whole(command, run, tmp_path, line):
    found = shell(line, command("CoOp", tmp_path / "unread"))
    assert found.returncode == 0 and found.stderr == "", found.stderr
    assert run("CoOp", tmp_path / "read").code == 0
    logs = [(tmp_path / name / "log.txt").read_text() for name in ("unread", "read")]
    lines = [[line for line in log.splitlines() if line[:2] in ("* ", "=>")] for log in logs]
    assert is_complete(tmp_path / "unread") and lines[0] == lines[1] and len(lines[0]) > 5


def test_what_was_printed_before_is_in_the_log_too(run, tmp_path):
    result = run("CoOp", tmp_path)
    assert (tmp_path / "log.txt").read_text() == result.out


def test_a_reader_that_has_gone_is_no_error():
    read, write = os.pipe()
    with open(write, "w", buffering=1) as stream:
        console = Console(stream)
        console.write("heard\n")
        os.close(read)
        for _ in range(3):
            assert console.write("unheard\n") == 8
        console.flush()
        assert not console.isatty()


def test_closed_streams_take_the_numbers_that_other_files_would(tmp_path):
    path = tmp_path / "results"
    program = f"""
import os
from apd.console import lasting
with lasting():
    file = open("{path}", "w")
    print("lost")
    os.write(1, b"lost")
    file.write("kept")
"""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, sys.path))}
    subprocess.run(["bash", "-c", f"{sys.executable} -c '{program}' <&- >&- 2>&-"], env=env)
    assert path.read_text() == "kept"


def test_streams_are_as_before_in_the_end(capsys):
    before = sys.stdout, sys.stderr
    with lasting():
        print("said")
        print("warned", file=sys.stderr)
    assert (sys.stdout, sys.stderr) == before
    assert tuple(capsys.readouterr()) == ("said\n", "warned\n")
