"""``apd-sweep``, with real cells in this process."""

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from apd.errors import UserError
from apd.jobs.job import FAILED_NAME, State
from apd.jobs.lock import LOCK_NAME, _this_process
from apd.results import read_results
from apd.results.runs import load_runs
from apd.sweep.spec import read_spec
from apd.sweep.training_job import TrainingJob
from apd.tables.kinds import methods
from apd.tables.write import plain


def written(folder):
    return {
        p.relative_to(folder): p.stat().st_mtime_ns
        for p in Path(folder).rglob("*")
        if p.is_file() and p.name != ".sweep.guard"
    }


def states(out):
    """Of a dry run: (state, cell) of each line."""
    rows = [line.split() for line in out.splitlines()[2:] if "seed" in line]
    return {row[1]: row[0] for row in rows}


def test_a_sweep_runs_its_cells_once(sweep, write_spec):
    spec = write_spec({"seed": [1, 2]})
    first = sweep(spec)
    assert (first.code, first.err) == (0, "") and len(first.started) == 2
    assert first.out.splitlines()[-1] == "2 cells: 2 done (2 in this sweep)"
    cells = read_spec(spec)
    assert [read_results(cell.folder)["seed"] for cell in cells] == [1, 2]
    before = written(cells[0].output)
    assert not [path for path in before if path.name in (LOCK_NAME, FAILED_NAME)]

    second = sweep(spec)
    assert second.code == 0 and second.started == []
    assert second.out.splitlines()[-1] == "2 cells: 2 done (0 in this sweep)"
    assert written(cells[0].output) == before


def test_rows_of_finished_cells_make_the_table_of_methods(sweep, write_spec):
    spec = write_spec({"trainer": ["ZeroshotCLIP", "AdvIVLP"], "seed": [1]})
    assert sweep(spec).code == 0  # what cells in this process print would stand between the rows
    header, rule, *rows = sweep(spec, "--rows").out.splitlines()[:-1]
    rows = [row for row in rows if not row.startswith("  ")]  # without footnotes
    (table,) = methods(load_runs([cell.folder for cell in read_spec(spec)]))
    titles, lines, _ = plain(table)
    for printed, expected in ((header, titles), *zip(rows, lines, strict=True)):
        assert without_marks(printed.split()) == without_marks(" ".join(expected).split())
    assert {len(header), len(rule), *map(len, rows)} == {len(rule)}  # the last one ends there
    assert [row[: len("ZeroshotCLIP")].strip() for row in rows] == ["ZeroshotCLIP", "AdvIVLP"]


def without_marks(words):
    return [word for word in words if not word.startswith("†")]


def test_a_failed_cell_is_no_row(sweep, write_spec):
    spec = write_spec({"OPTIM.LR": [1e30, 0.01]}, set={"OPTIM.MAX_EPOCH": 3})
    bad, _ = read_spec(spec)
    assert sweep(spec).code == 1
    failed, header, _, row, *_ = sweep(spec, "--rows").out.splitlines()
    assert failed.startswith(f"failed   {bad.folder} exit code 1")
    assert header.split()[:2] == ["method", "prompts"] and row.split()[0] == "CoOp"


def test_a_failing_cell_does_not_stop_the_rest(sweep, write_spec):
    spec = write_spec({"OPTIM.LR": [1e30, 0.01]}, set={"OPTIM.MAX_EPOCH": 3})
    bad, good = read_spec(spec)
    result = sweep(spec)
    assert result.code == 1 and result.started == [bad.folder, good.folder]
    assert f"failed: {bad.folder}: exit code 1" in result.out
    assert "    error: the loss is nan at epoch" in result.out  # its last lines
    assert "2 cells: 1 done (1 in this sweep), 1 failed" in result.out
    assert good.state().kind == "done" and bad.state().kind == "failed"
    assert sweep(spec, "--folders").out.split() == [good.folder]

    assert sweep(spec).started == []
    again = sweep(spec, "--retry-failed")
    assert again.started == [bad.folder] and again.code == 1


def test_a_crash_is_a_failure_with_its_traceback(sweep, write_spec, monkeypatch):
    import apd.train.command

    def crash(argv):
        raise RuntimeError("the disk is on fire")

    monkeypatch.setattr(apd.train.command, "train", crash)
    result = sweep(write_spec())
    assert result.code == 1 and "    RuntimeError: the disk is on fire" in result.out


def test_a_failure_of_another_configuration_does_not_count(sweep, write_spec):
    sweep(write_spec(set={"OPTIM.LR": 1e30, "OPTIM.MAX_EPOCH": 3}))
    spec = write_spec()
    assert read_spec(spec)[0].state().kind != "failed"
    (cell,) = read_spec(spec)
    Path(cell.folder, "resume.pth.tar").unlink(missing_ok=True)
    assert sweep(spec).code == 0
    assert not Path(cell.folder, FAILED_NAME).exists()


def test_another_configuration_is_told_and_not_overwritten(sweep, write_spec):
    assert sweep(write_spec()).code == 0
    spec = write_spec({"seed": [1, 2]}, set={"AT.TEST.STEPS": 3})
    cell, other = read_spec(spec)
    before = written(cell.folder)
    dry = sweep(spec, "--dry-run")
    assert states(dry.out) == {cell.folder: "blocked", other.folder: "missing"}
    result = sweep(spec)
    assert result.code == 1 and result.started == [other.folder]
    assert f"blocked: {cell.folder}: " in result.out and "AT.TEST.STEPS: 3, was 2" in result.out
    assert written(cell.folder) == before


def test_a_damaged_result_is_told_and_not_overwritten(sweep, write_spec):
    spec = write_spec()
    (cell,) = read_spec(spec)
    Path(cell.folder).mkdir(parents=True)
    Path(cell.folder, "results.json").write_text("{")
    result = sweep(spec)
    assert result.code == 1 and result.started == [] and "is damaged" in result.out


def test_a_folder_alone_is_not_a_finished_cell(sweep, write_spec):
    spec = write_spec()
    (cell,) = read_spec(spec)
    Path(cell.folder).mkdir(parents=True)
    assert cell.state().kind == "missing"
    assert sweep(spec).started == [cell.folder]


def test_the_dry_run_lists_all_states_and_the_time_left(sweep, write_spec):
    sweep(write_spec({"seed": [1, 2]}))
    sweep(write_spec({"seed": 3, "trainer": "VPT"}, set={"OPTIM.LR": 1e30, "OPTIM.MAX_EPOCH": 3}))
    spec = write_spec({"seed": [1, 2, 3, 4, 5]})
    done, _, missing, partial, running = (cell.folder for cell in read_spec(spec))
    epoch = "epoch [2/3] batch [1/2] time 0.1 loss 1.2 lr 2.0e-03 eta 0:01:05\n"
    for folder, log in (
        (partial, f"epoch [1/3] batch [1/2] eta 0:02:05\n{epoch}"),
        (running, f"{epoch}Evaluate on the *test* set\n* accuracy: 61.5%\n"),
    ):
        Path(folder).mkdir(parents=True)
        Path(folder, "log.txt").write_text(log)
    Path(running, LOCK_NAME).write_text(json.dumps({**_this_process(), "token": ""}))
    for folder in (done, read_spec(spec)[1].folder):
        path = Path(folder, "results.json")
        results = json.loads(path.read_text())
        path.write_text(json.dumps({**results, "seconds": 3600}))

    result = sweep(spec, "--dry-run", "--jobs", "2")
    assert (result.code, result.started) == (0, [])
    assert list(states(result.out).values()) == ["done", "done", "missing", "partial", "running"]
    line = next(line for line in result.out.splitlines() if line.startswith("partial"))
    assert "1:00:00" in line and line.endswith("epoch [2/3], eta 0:01:05")
    assert f"running  {running}  1:00:00     by process {os.getpid()} on " in result.out
    assert "evaluating, accuracy: 61.5%" in result.out
    assert "5 cells: 2 done, 1 missing, 1 partial, 1 running" in result.out
    assert "estimated time left: 1:30:00, 2 cells at a time" in result.out

    failed = write_spec(
        {"seed": [2, 3], "trainer": "VPT"}, set={"OPTIM.LR": 1e30, "OPTIM.MAX_EPOCH": 3}
    )
    result = sweep(failed, "--dry-run")
    assert list(states(result.out).values()) == ["missing", "failed"]
    assert "exit code 1 error: the loss is nan" in result.out
    assert "estimated time left: 0:0" in result.out  # counted, and timed here


def test_an_estimate_from_another_data_set_is_scaled_by_the_count(save, monkeypatch):
    from apd.sweep import command

    counted = {"a": 10, "b": 20, "new": 50}
    cells = {
        name: TrainingJob(
            folder=str(save(name, seconds=3 * counted.get(name, 1))),
            output="o",
            argv=(),
            similarity_key=(False, name, "APD"),
        )
        for name in counted
    }

    def seconds_here(cell):
        if cell is cells["b"]:
            raise UserError("its CLIP is not here")
        return counted[cell.similarity_key[1]]

    monkeypatch.setattr(command, "seconds_here", seconds_here)
    done = {cells[name]: State("done") for name in ("a", "b")}
    estimate = command.Estimator(done | {cells["new"]: State("missing")})
    assert estimate(cells["new"]) == 150 and estimate(cells["b"]) == 60
    assert command.Estimator({})(cells["new"]) == 50
    assert command.Estimator({})(cells["b"]) is None


def test_an_estimate_prefers_the_cells_most_alike(sweep, write_spec):
    from apd.sweep.command import Estimator

    spec = write_spec({"shots": [1, 2, 4], "seed": [1, 2]})
    cells = read_spec(spec)
    sweep(write_spec({"shots": [1, 2]}))
    for cell, seconds in ((cells[0], 100), (cells[2], 300)):
        path = Path(cell.folder, "results.json")
        path.write_text(json.dumps({**json.loads(path.read_text()), "seconds": seconds}))
    estimate = Estimator({cell: cell.state() for cell in cells})
    assert [estimate(cell) for cell in cells] == [100, 100, 300, 300, 200, 200]
    (other,) = read_spec(write_spec({"trainer": "VPT"}))
    assert estimate(other) == 200
    base, _ = read_spec(write_spec({"shots": 1}, protocol="base-to-new"))
    evaluation = replace(base, similarity_key=(True, *base.similarity_key[1:]))
    assert estimate(base) == 100
    assert estimate(evaluation) not in (None, 100)  # counted, for want of any like it


def test_base_to_new(sweep, write_spec):
    spec = write_spec(protocol="base-to-new")
    base, new = read_spec(spec)
    result = sweep(spec)
    assert result.code == 0 and result.started == [base.folder, new.folder]
    assert [read_results(c.folder)["subsample"] for c in (base, new)] == ["base", "new"]
    assert read_results(new.folder)["prompts_from"]["model_dir"] == base.folder
    assert sweep(spec).started == []


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--trainer", "ADP"], 'unknown trainer "ADP"'),
        (["--dataset", "digit"], "no config file configs/datasets/digit.yaml"),
        (["--set", "OPTIM.LR", "fast"], "OPTIM.LR"),
        (["--set", "OPTIM.LR"], "--set takes pairs"),
        (["--set", "OPTIM.RL", "1"], "did you mean OPTIM.LR"),
        (["--jobs", "0"], "--jobs: 0 is refused"),
        (["--slurm", "partition"], "--slurm partition: use KEY=VALUE"),
    ],
)
def test_mistakes_are_told_before_anything_runs(sweep, write_spec, argv, message):
    result = sweep(write_spec({"seed": [1, 2]}), *argv)
    assert result.code == 2 and result.started == []
    assert result.err.startswith("error: ") and message in result.err
    assert len(result.err.splitlines()) == 1


def test_a_cell_with_an_owner_is_not_run(write_spec, sweep):
    from apd.jobs.worker import run_job

    (cell,) = read_spec(write_spec())
    Path(cell.folder).mkdir(parents=True)
    lock = Path(cell.folder, LOCK_NAME)
    lock.write_text(json.dumps({**_this_process(), "token": ""}))
    os.utime(lock, (time.time() - 10_000,) * 2)
    run_job(cell, ".")
    assert [p.name for p in Path(cell.folder).iterdir()] == [LOCK_NAME]
