"""apd-eval in shards, from finished runs to one table: on an engine, by hand, killed."""

import contextlib
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from apd.jobs import engine
from apd.jobs.lock import Lock, owner
from apd.jobs.options import ExecutorOptions
from apd.results import read_results

ROOT = Path(__file__).parents[2]
ATTACKS = ("--attack", "pgd-3,fgsm", "--eps", "1,2")


@pytest.fixture(scope="module")
def finished(run, tmp_path_factory):
    """Folder of a finished run."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert run("AdvIVLP", folder, "OPTIM.MAX_EPOCH", 1).code == 0
    return folder


@pytest.fixture
def copies(finished, tmp_path):
    """Two copies of the run: one to evaluate as a whole."""
    return [Path(shutil.copytree(finished, tmp_path / name / "run")) for name in ("a", "b")]


def kept(run):
    """All that is stored of a run's evaluations, but for seconds; ``shards`` must be empty."""
    assert list((run / "evaluations" / "shards").glob("*-of-*")) == []
    found = {p.stem: json.loads(p.read_text()) for p in (run / "evaluations").glob("*.json")}
    for one in found.values():
        del one["record"]["seconds"]
    return found


def without_seconds(table):
    return [line.rpartition("  ")[0] for line in table.splitlines()]


def test_on_an_engine_as_on_one_device(copies, call, inline):
    whole, parts = copies
    code, table, _ = call(whole, *ATTACKS)
    assert code == 0
    code, out, _ = call(parts, *ATTACKS, "--shards", 3)
    assert code == 0 and without_seconds(out) == without_seconds(table)
    assert len(inline.started) == 3 and kept(parts) == kept(whole) and len(kept(whole)) == 4
    # again: nothing is left to do; more: only that
    assert call(parts, *ATTACKS, "--shards", 3)[0] == 0 and len(inline.started) == 3
    more = ("--attack", "pgd-3,fgsm,cw-2", "--eps", "1,2")
    assert call(parts, *more, "--shards", 2)[0] == call(whole, *more)[0] == 0
    assert len(inline.started) == 5 and kept(parts) == kept(whole) and len(kept(whole)) == 6


def test_clean_and_other_sources_and_precisions(copies, call, inline):
    whole, parts = copies
    assert call(parts, "--attack", "clean", "--shards", 2)[0] == 0
    more = ("--source", "white-box,transfer:zeroshot", "--prec", "fp32,bf16", "--subset", 10)
    assert call(whole, *more)[0] == call(parts, *more, "--shards", 2)[0] == 0
    assert kept(parts) == kept(whole)


def test_by_hand(copies, call):
    whole, parts = copies
    assert call(whole, *ATTACKS)[0] == 0
    code, out, _ = call(parts, *ATTACKS, "--shard", "1/2")
    assert code == 0 and "shard 1/2: fgsm (eps 2/255): " in out and "--merge" in out
    code, _, err = call(parts, *ATTACKS, "--merge")
    assert code == 2 and err == (
        f"error: {parts}: of its shards, 2/2 of this evaluation have not ended: run --shard 2/2, "
        "with the same other options\n"
    )
    assert call(parts, *ATTACKS, "--shard", "2/2")[0] == 0
    assert call(parts, *ATTACKS, "--merge")[0] == 0 and kept(parts) == kept(whole)


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--merge"], "has no shards: run --shard i/N first"),
        (["--shard", "3/2"], "--shard 3/2: use i/N"),
        (["--shards", "0"], "--shards: 0"),
        (["--shards", "99"], "99 shards of 20 images: use fewer"),
        (["--shard", "1/99"], "99 shards of 20 images: use fewer"),
        (["--shards", "2", "--jobs", "0"], "--jobs"),
        (["--shards", "2", "--executor", "slurm", "--slurm", "x"], "--slurm x: use KEY=VALUE"),
    ],
)
def test_mistakes_are_told_in_one_line(finished, call, args, told):
    code, _, err = call(finished, "--attack", "pgd-2", *args)
    assert code == 2 and told in err and err.count("\n") == 1 and err.startswith("error: ")


def test_a_shard_that_another_process_has_is_left_to_it(copies, call):
    folder = copies[0] / "evaluations" / "shards"
    assert (lock := Lock(folder / "1-of-2", folder)).acquire()
    code, _, err = call(copies[0], "--attack", "pgd-2", "--shard", "1/2")
    lock.release()
    assert code == 2 and "another process is at shard 1/2" in err


def test_a_failed_worker_is_told_in_one_line_and_done_again(copies, call, inline, monkeypatch):
    from apd.evaluate import workers

    evaluate_requests, run = workers.evaluate_requests, copies[0]

    def failing(saved, requests):
        if requests[0].shard.number == 2:
            raise workers.WorkerFailed("no memory for this one")
        return evaluate_requests(saved, requests)

    monkeypatch.setattr(workers, "evaluate_requests", failing)
    code, _, err = call(run, "--attack", "pgd-2", "--shards", 2)
    assert code == 1 and err.splitlines()[-1] == (
        f"error: {run}, shard 2/2: exit code 1 (no memory for this one); "
        f"{run}/evaluations/shards/2-of-2 has its log, and the same command goes on"
    )
    monkeypatch.undo()
    monkeypatch.setattr(ExecutorOptions, "start", lambda *_: inline)
    inline.started.clear()
    assert call(run, "--attack", "pgd-2", "--shards", 2)[0] == 0
    assert [Path(folder).name for folder in inline.started] == ["2-of-2"]


def test_a_killed_worker_is_started_again(copies, call, monkeypatch):
    """In real processes, beside each other."""
    whole, parts = copies
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, [ROOT, *sys.path])))
    killed, show = [], engine.Display.__call__

    def killing(display, scheduler):
        show(display, scheduler)
        found = owner(parts / "evaluations" / "shards" / "1-of-2")
        if not killed and found:
            with contextlib.suppress(ProcessLookupError, TypeError):
                os.kill(found["pid"], signal.SIGKILL)
                killed.append(found)

    monkeypatch.setattr(engine.Display, "__call__", killing)
    options = ("--attack", "pgd-20", "--shards", 2, "--threads", 1)
    assert call(parts, *options)[0] == 0
    assert call(whole, *options[:2])[0] == 0
    assert killed and kept(parts) == kept(whole)


@pytest.mark.parametrize(
    ("package", "engine"),
    [
        ("ray", ["ray"]),
        ("submitit", ["slurm", "--slurm", "cluster=local", "timeout_min=5"]),
    ],
)
def test_on_ray_and_in_slurm_jobs(copies, call, monkeypatch, package, engine):
    pytest.importorskip(package)
    whole, parts = copies
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, [ROOT, *sys.path])))
    options = ("--attack", "pgd-2,fgsm")
    code, _, err = call(parts, *options, "--shards", 2, "--threads", 1, "--executor", *engine)
    assert code == 0, err
    assert call(whole, *options)[0] == 0
    assert kept(parts) == kept(whole)


def test_train_py_evaluates_in_shards(run, finished, tmp_path, inline):
    options = ("OPTIM.MAX_EPOCH", 1, "AT.TEST.SHARDS", 2)
    result = run("AdvIVLP", tmp_path / "run", *options)
    assert result.code == 0 and len(inline.started) == 2
    first, second = (read_results(folder) for folder in (finished, tmp_path / "run"))
    for results in (first, second):
        for record in results["evaluations"]:
            del record["seconds"]
    assert second["evaluations"] == first["evaluations"]
    assert kept(tmp_path / "run") == kept(finished)
    log, other = ((folder / "log.txt").read_text() for folder in (finished, tmp_path / "run"))
    accuracy = [line for line in log.splitlines() if line.startswith("* ")]
    assert accuracy == [line for line in other.splitlines() if line.startswith("* ")]
    assert len(accuracy) > 4
    # --eval-only of those prompts, and nothing is done twice
    of = ("--eval-only", "--model-dir", str(finished))
    assert run("AdvIVLP", tmp_path / "eval", *options, flags=of).code == 0
    assert len(inline.started) == 4
    (tmp_path / "run" / "results.json").unlink()
    assert run("AdvIVLP", tmp_path / "run", *options).code == 0 and len(inline.started) == 4
    assert run("AdvIVLP", tmp_path / "x", "AT.TEST.SHARDS", 0).code == 2
