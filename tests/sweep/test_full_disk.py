"""A full disk: one line, exit code 1, nothing half written, and the same command goes on."""

import contextlib
import errno
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from apd import files
from apd.arguments import convert, evaluate
from apd.errors import exit_codes
from apd.files import write_tensors
from apd.jobs import local, lock
from apd.jobs.local import Local
from apd.jobs.lock import Lock, owner
from apd.results import is_complete


@pytest.fixture
def fill(monkeypatch):
    """Function: whatever a module writes by ``open`` from now on finds no room.

    The files are made, and the system itself (/dev/full) refuses their content.
    """

    def fill(module):
        def full(path, mode="r", **more):
            if not set(mode) & set("wxa"):
                return open(path, mode, **more)
            open(path, mode, **more).close()
            return open("/dev/full", mode.replace("x", "w"), **more)

        monkeypatch.setattr(module, "open", full, raising=False)

    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    return fill


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


def told(capfd):
    """The one line of stderr."""
    (line,) = capfd.readouterr().err.splitlines()
    return line


def test_no_empty_lock_is_left(fill, tmp_path):
    fill(lock)
    folder = tmp_path / "run"
    with pytest.raises(OSError) as caught:
        Lock(folder, tmp_path).acquire()
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(
        folder / "sweep.lock"
    )
    assert list(folder.iterdir()) == [] and owner(folder) is None


@pytest.mark.parametrize("numbers", [10, 100_000])  # less, and more, than what a file buffers
def test_tensors_are_written_whole_or_not_at_all(fill, tmp_path, numbers):
    path = tmp_path / "x.pt"
    write_tensors(path, {"x": torch.arange(3)})
    fill(files)
    with pytest.raises(OSError) as caught:
        write_tensors(path, {"x": torch.zeros(numbers)})
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(path)
    assert torch.load(path, weights_only=True)["x"].tolist() == [0, 1, 2]
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_of_torch_that_is_no_files_is_its_own(tmp_path):
    with pytest.raises(Exception, match="pickle|local"):
        write_tensors(tmp_path / "x.pt", lambda: None)
    assert list(tmp_path.iterdir()) == []


def test_a_command_says_which_file_had_no_room(fill, tmp_path, capfd):
    fill(files)
    assert exit_codes(lambda _: write_tensors(tmp_path / "x.pt", torch.zeros(9)))() == 1
    assert told(capfd) == (
        f"error: {tmp_path / 'x.pt'}: No space left on device: make room, and the same command "
        "goes on"
    )


def test_training_ends_with_a_line_and_goes_on(fill, run, tmp_path, monkeypatch):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[__name__], "open", open, raising=False)
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


def test_a_cells_process_says_so_by_its_exit_code(monkeypatch):
    def no_room(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(local, "run_job", no_room)
    monkeypatch.setattr(local.signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        local._process(None, ".", 1, None)
    executor = Local.__new__(Local)
    process = SimpleNamespace(is_alive=lambda: False, exitcode=ended.value.code, name="run")
    executor.running = {0: process}
    with pytest.raises(OSError, match="No space left on device: 'run'"):
        executor.poll(process)
    assert executor.running == {}


def call(*argv):
    """A command in a process of its own: exit code, and stderr without progress bars."""
    found = subprocess.run(
        [sys.executable, "-m", *map(str, argv)],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    lines = found.stderr.replace("\r", "\n").splitlines()
    return found.returncode, [line for line in lines if line.strip() and "it/s" not in line]


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
