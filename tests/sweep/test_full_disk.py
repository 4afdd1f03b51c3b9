"""A full disk: one line, exit code 1, nothing half written, and the same command goes on."""

import contextlib
import os
import subprocess
import sys

import pytest

from apd import files
from apd.arguments import convert, evaluate
from apd.results import is_complete


@pytest.fixture
def disk(tmp_path):
    """Function: a file system of so many KiB, in a folder."""
    mounted = []

    def disk(size):
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", folder]
        try:
            subprocess.run(mount, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("file systems are mounted by root only")
        mounted.append(folder)
        return folder

    yield disk
    for folder in mounted:
        subprocess.run(["umount", "-l", folder], check=True)


def test_training_ends_with_a_line_and_goes_on(fill, run, tmp_path, monkeypatch):
    fill(files)
    result = run("CoOp", tmp_path)
    assert result.code == 1 and "history.csv: No space left" in result.err.splitlines()[-1]
    assert "Traceback" not in result.err
    monkeypatch.undo()
    assert run("CoOp", tmp_path).code == 0 and is_complete(tmp_path)


def test_conversion_leaves_nothing_in_the_way(fill, run, tmp_path, capsys, monkeypatch):
    assert run("CoOp", tmp_path / "run").code == 0
    argv = [str(tmp_path / "run"), str(tmp_path / "other")]
    fill(files)
    assert convert.main(argv) == 1 and "No space left" in capsys.readouterr().err
    monkeypatch.undo()
    assert convert.main(argv) == 0


def test_a_cell_that_met_a_full_disk_has_not_failed(fill, sweep, write_spec, monkeypatch):
    spec = write_spec()
    fill(files)
    result = sweep(spec)
    assert result.code == 1 and result.err.splitlines()[-1].endswith("the same command goes on")
    assert "Traceback" not in result.err
    monkeypatch.undo()
    assert "missing" not in result.out and "failed" not in sweep(spec, "--dry-run").out


def call(*argv):
    """A command in a process of its own: exit code, and stderr without progress bars."""
    process = subprocess.run(
        [sys.executable, "-m", *map(str, argv)],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    lines = process.stderr.replace("\r", "\n").splitlines()
    return process.returncode, [line for line in lines if line.strip() and "it/s" not in line]


def test_processes_of_a_sweep_meet_a_full_disk(disk, write_spec, sweep):
    output = disk(4)  # room for one lock
    spec = write_spec({"seed": [1, 2, 3]}, output=str(output))
    code, lines = call("apd.sweep", spec, "--jobs", "2")
    assert code == 1 and "No space left on device: make room" in lines[0], lines
    assert len(lines) == 1 and not list(output.rglob("sweep.lock"))
    subprocess.run(["mount", "-o", "remount,size=64m", output], check=True)
    assert "3 done (3 in this sweep)" in sweep(spec).out


def test_shards_meet_a_full_disk(disk, run, inline, capsys):
    folder = disk(4096) / "run"
    assert run("CoOp", folder).code == 0
    filler = folder.parent / "filler"
    with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
        while file.write(bytes(512)):
            pass
    argv = [str(folder), "--attack", "pgd-5", "--shards", "2"]
    code, lines = call("apd.arguments.evaluate", *argv)
    assert code == 1 and "No space left on device: make room" in lines[0], lines
    assert len(lines) == 1 and not list(folder.rglob("sweep.lock"))
    filler.unlink()
    assert evaluate.main(argv) == 0
