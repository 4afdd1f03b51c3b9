"""SIGKILL at any moment: started again until it ends, a run has the bits of one never killed."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest
import torch

from apd.results import read_results

ROOT = Path(__file__).parents[2]
OPTIONS = {
    "APD": ("OPTIM.MAX_EPOCH", 3, "TRAIN.CHECKPOINT_FREQ", 1, "TRAINER.APD.BETA", 0.5),
    "MaPLe": ("OPTIM.MAX_EPOCH", 3, "TRAIN.CHECKPOINT_FREQ", 1),
}


# -- processes -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def start(command):
    """Function: start a run in a process of its own that has apd imported already."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, [ROOT, *sys.path])))
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["apd.train.preload"])

        def start(out, method, *more, kill_at=None):
            arguments = command(method, out, *OPTIONS[method], *more)
            process = context.Process(target=_run, args=(arguments, kill_at))
            process.start()
            return process

        yield start


def _run(arguments, kill_at):
    """The child: run, and with ``kill_at`` (event, n) be killed at the n-th such event."""
    import apd.train.command

    torch.set_num_threads(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno())
    apd.register()
    if kill_at:
        _watch(*kill_at)
    sys.exit(apd.train.command.main(arguments))


def _watch(event, left):
    """Send SIGKILL at an event: ``step`` (before it), ``attack`` (a step of one, in training too),
    ``write`` (the file is complete, but not in its place) or ``written``."""
    import apd.files
    from apd.training.base import PromptTrainer

    pgd = import_module("apd.attacks.pgd")  # apd.attacks.pgd is the function

    def happens(name):
        nonlocal left
        left -= name == event
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)

    def noting(function, before, after=""):
        def wrapper(*args, **more):
            happens(before)
            result = function(*args, **more)
            happens(after)
            return result

        return wrapper

    PromptTrainer.forward_backward = noting(PromptTrainer.forward_backward, "step")
    pgd._move = noting(pgd._move, "attack")
    replace = noting(os.replace, "write", "written")

    def replacing(source, target):
        happens(f"write {Path(target).name}")
        replace(source, target)

    apd.files.os.replace = replacing


def finish(process):
    process.join(60)
    assert process.exitcode == 0


@pytest.fixture(scope="module")
def whole(start, tmp_path_factory):
    """Function: the folder of a run that was never killed."""
    folders = {}

    def whole(method):
        if method not in folders:
            folders[method] = tmp_path_factory.mktemp(f"whole-{method}")
            finish(start(folders[method], method))
        return folders[method]

    return whole


# -- outcomes --------------------------------------------------------------------------------------


def assert_same(folder, other):
    first, second = (
        {
            (path.relative_to(run), name): value
            for path in sorted(run.glob("*/model.pth.tar-*"))
            for name, value in torch.load(path, weights_only=True)["state_dict"].items()
        }
        for run in (folder, other)
    )
    assert first.keys() == second.keys() and len(first) >= 12
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    counts = [
        [(e["attack"], e["correct"], e["total"]) for e in read_results(run)["evaluations"]]
        for run in (folder, other)
    ]
    assert counts[0] == counts[1] and len(counts[0]) == 2


def epochs_behind(folder):
    """Of a killed run: its resume file, if there is one, is whole."""
    path = folder / "resume.pth.tar"
    return torch.load(path, weights_only=True)["epoch"] if path.exists() else 0


def written(path):
    return path.stat().st_mtime_ns if path.exists() else None


# -- kills -----------------------------------------------------------------------------------------


def test_killed_at_every_kind_of_moment(start, whole, tmp_path):
    method, files = "APD", 6  # an epoch writes: prompts and pointer of each of its two models,
    plan = [("step", 1)]  # history.csv, and the state to resume from
    plan += [(event, n) for n in range(1, files + 1) for event in ("write", "written")]
    # epoch 1 is behind it
    plan += [("step", 2), ("written", 1), ("write", files), ("written", files)]  # and epoch 2
    plan += [("step", 1), ("written", files)]  # and epoch 3: what is left is the evaluation
    plan += [("attack", 1), ("attack", 2), ("write", 1), ("write results.json", 1)]
    epochs = []
    for kill_at in plan:
        process = start(tmp_path, method, kill_at=kill_at)
        process.join(60)
        assert process.exitcode == -signal.SIGKILL, kill_at
        assert not (tmp_path / "results.json").exists()
        epochs.append(epochs_behind(tmp_path))
    assert epochs == [0] * (2 * files) + [1] * 4 + [2] * 2 + [3] * 5
    finish(start(tmp_path, method))
    assert_same(tmp_path, whole(method))


def test_killed_from_outside_at_random_moments(start, whole, tmp_path):
    method, draw = "MaPLe", random.Random(1)
    path, kills = tmp_path / "resume.pth.tar", 0
    for i in range(8):
        before = written(path)
        process = start(tmp_path, method)
        if i == 0 or draw.random() < 0.7:  # when the state of one more epoch is there
            while process.is_alive() and written(path) == before:
                time.sleep(0.001)
            time.sleep(draw.uniform(0, 0.05) if i else 0)
        else:
            time.sleep(draw.uniform(0, 0.5))
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
        epochs_behind(tmp_path)
    # the first comes with two epochs to go; later ones may find that a fast machine is done
    assert kills >= 1
    finish(start(tmp_path, method))
    assert_same(tmp_path, whole(method))


def test_the_real_command_killed(command, start, whole, tmp_path):
    """``python train.py``, killed right after its first checkpoint."""
    line = [sys.executable, "train.py", *command("APD", tmp_path, *OPTIONS["APD"])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}

    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(line, cwd=ROOT, env=environment, **quiet)
    while not (tmp_path / "resume.pth.tar").exists() and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    finish(start(tmp_path, "APD"))
    assert_same(tmp_path, whole("APD"))
