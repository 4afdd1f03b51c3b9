"""The protocols' scripts: which sweep they run, and from their first line to their report."""

import csv
import os
import re
import shlex
import subprocess
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROTOCOLS = ("main_table", "fewshot", "base2new", "cross_dataset", "domain_shift", "ablation")
SHORT = "OPTIM.MAX_EPOCH 1 AT.TEST.STEPS 1 AT.TEST.SUBSET 20"
FAKE = """#!/bin/sh
case "$*" in *--folders*) echo one; echo two; exit ;; esac
echo $(basename "$0") "$@" >> "$CALLS"
[ "$0" != "$FAILS" ] || exit "$CODE"
"""
VARIABLES = "DIRTY PARTS SETS IMAGES METHODS CFG TARGETS SPEC OUTPUT OPTIONS FLAGS ATTACKED".split()


def bash(command, **environment):
    clean = {key: value for key, value in os.environ.items() if key not in VARIABLES}
    environment = {**clean, "INSTALL": "no", "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        ["bash", "-c", command], cwd=ROOT, text=True, capture_output=True, env=environment
    )


@pytest.fixture
def calls(tmp_path):
    """Function: the commands that a script would run, without running them."""
    (tmp_path / "bin").mkdir()
    for name in ("apd-sweep", "apd-table", "apd-plot", "apd-report", "apd-eval"):
        program = tmp_path / "bin" / name
        program.write_text(FAKE)
        program.chmod(0o755)

    def calls(script, *args, fails="", code=0, **environment):
        environment |= {
            "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
            "CALLS": str(tmp_path / "calls"),
            "FAILS": str(tmp_path / "bin" / fails),
            "CODE": str(code),
        }
        (tmp_path / "calls").write_text("")
        result = bash(shlex.join(["bash", f"scripts/{script}.sh", *args]), **environment)
        made = [line.split() for line in (tmp_path / "calls").read_text().splitlines()]
        return made, result.returncode

    return calls


@pytest.mark.parametrize("script", PROTOCOLS)
def test_without_arguments_on_the_digits(calls, script):
    (sweep, table, report, plot), code = calls(script)
    assert sweep[:2] == ["apd-sweep", f"configs/sweeps/digits_{script}.yaml"] and code == 0
    assert (ROOT / sweep[1]).is_file()
    assert sweep[2:] == ["--root", "data", "--output", "output"]
    assert table[:3] == ["apd-table", "one", "two"]
    assert f"output/{script}.md" in table
    assert plot[0] == "apd-plot" and report[-1] == f"output/{script}.html"


@pytest.mark.parametrize("script", PROTOCOLS)
def test_with_a_root_the_papers_data_sets(calls, script):
    (sweep, *_), _ = calls(script, "/data", OUTPUT="there")
    assert sweep[1:] == [f"configs/sweeps/{script}.yaml", "--root", "/data", "--output", "there"]
    assert (ROOT / sweep[1]).is_file()


def test_arguments_and_environment_replace_what_the_sweep_says(calls):
    (sweep, *_), _ = calls(
        "fewshot",
        "/data",
        "dtd eurosat",
        "1 2",
        "1 3",
        METHODS="CoOp APD",
        CFG="vit_b16",
        OPTIONS="OPTIM.LR 0.1 AT.TEST.EPS 2",
        FLAGS="--jobs 4",
        TARGETS="letters",
    )
    assert " ".join(sweep[6:]) == (
        "--dataset dtd eurosat --shots 1 2 --seed 1 3 --trainer CoOp APD --config vit_b16 "
        "--targets letters --set OPTIM.LR 0.1 AT.TEST.EPS 2 --jobs 4"
    )
    (sweep, *_), _ = calls("fewshot", "data", "digits")
    assert sweep[1] == "configs/sweeps/digits_fewshot.yaml"


def test_the_demo_has_six_methods_all_or_those_that_are_named(calls):
    for methods, trainers in (
        ({}, "ZeroshotCLIP APD AdvIVLP AdvVPT MaPLe CoOp"),
        ({"METHODS": "all"}, ""),
        ({"METHODS": "CoOp APD"}, "CoOp APD"),
    ):
        (sweep, *_), _ = calls("demo", **methods)
        assert sweep[1] == "configs/sweeps/demo.yaml"
        named = " ".join(sweep).partition(" --trainer ")[2].partition(" --")[0]
        assert named == trainers
        jobs = f"--jobs {os.cpu_count()} --threads 1 --rows"
        assert " ".join(sweep).endswith(f" --set AT.TEST.SUBSET 400 {jobs}")
    (sweep, *_), _ = calls("demo", IMAGES="0", OPTIONS="OPTIM.LR 0.1")
    assert " --set AT.TEST.SUBSET 0 OPTIM.LR 0.1 --jobs" in " ".join(sweep)


def test_the_demo_adds_autoattack_and_says_what_to_do_next(calls, tmp_path):
    made, _ = calls("demo")
    names = [call[0] for call in made]
    assert names.count("apd-table") == 1 and "apd-eval" not in names
    made, _ = calls("demo", ATTACKED="100", FLAGS="--jobs 3")
    (attack,) = [call for call in made if call[0] == "apd-eval"]
    options = ["--attack", "autoattack", "--subset", "100", "--shards", "2", "--jobs", "3"]
    assert attack[1:] == ["one", "two", *options]
    assert [call[0] for call in made].count("apd-table") == 1
    variables = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "FAILS": "", "CODE": "0"}
    said = bash("bash scripts/demo.sh data", CALLS=str(tmp_path / "calls"), **variables).stdout
    look, go_on = said.strip().splitlines()[-2:]
    assert look.startswith("Next: open output/demo.html;") and "apd-show two -o" in look
    assert "METHODS=all IMAGES=0 ATTACKED=100 bash scripts/demo.sh data; in Python" in go_on
    assert (ROOT / go_on.split()[-1]).is_file()


def test_failed_cells_are_told_after_the_tables_of_the_others(calls):
    made, code = calls("fewshot", fails="apd-sweep", code=1)
    assert code == 1 and made[-1][0] == "apd-plot"
    made, code = calls("fewshot", fails="apd-sweep", code=130)
    assert code == 130 and len(made) == 1


@pytest.fixture
def clone(tmp_path):
    """A committed clone with what study.sh reads."""
    folder = tmp_path / "clone"
    for name in ("scripts/study.sh", "scripts/env.sh"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text((ROOT / name).read_text())
    (folder / "docs" / "study").mkdir(parents=True)
    for archive in ("runs", "tasks_runs"):
        tarfile.open(folder / f"docs/study/{archive}.tar.gz", "w:gz").close()
    who = "-c user.name=a -c user.email=a@b.c"
    subprocess.run(f"git init -q && git add -A && git {who} commit -qm a", shell=True, cwd=folder)
    return folder


def test_the_study_runs_from_what_is_committed_unless_told(calls, clone, tmp_path):
    def study(**environment):
        command = f"cd {clone} && bash scripts/study.sh - {tmp_path}/data"
        path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
        found = {"PARTS": "confirm", "OUTPUT": f"{tmp_path}/out", "PATH": path, **environment}
        return bash(command, CALLS=str(tmp_path / "calls"), FAILS="", **found)

    (clone / "new.txt").write_text("not in git")
    result = study()
    assert (result.returncode, result.stderr) == (0, "")
    assert len((tmp_path / "calls").read_text().splitlines()) == 2
    (clone / "scripts" / "env.sh").write_text((ROOT / "scripts/env.sh").read_text() + "# changed\n")
    result = study()
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert "commit them first, or set DIRTY=1" in result.stderr
    assert len((tmp_path / "calls").read_text().splitlines()) == 2
    assert study(DIRTY="1").returncode == study(PARTS="tables").returncode == 0


def test_tasks_of_the_study_that_are_half_done_are_left_out_of_its_tables():
    text = (ROOT / "scripts" / "study.sh").read_text(encoding="utf-8")
    (function,) = re.findall(r"^whole_tasks\(\) \{.*?^\}$", text, re.MULTILINE | re.DOTALL)
    done = [f"out/tasks/{task}/APD/seed{i}" for task in ("food+1-10", "dtd") for i in range(3)]
    begun = ["out/tasks/food+2-10/APD/seed1"]
    command = ["bash", "-c", f"{function}\nwhole_tasks"]
    lines = "\n".join([*done[:4], *begun, *done[4:]])
    result = subprocess.run(command, input=lines, capture_output=True, text=True, check=True)
    assert result.stdout.split() == done


def test_from_the_first_line_to_the_report(tmp_path):
    result = bash(
        f"bash scripts/base2new.sh {tmp_path}/data digits 2 1",
        METHODS="CoOp",
        OPTIONS=SHORT,
        OUTPUT=str(tmp_path),
    )
    assert result.returncode == 0, result.stderr[-2000:]
    run = "digits/shots_2/CoOp/mini/seed1/results.json"
    for part in ("train_base", "test_new"):
        assert (tmp_path / "base2new" / part / run).is_file()
    with open(tmp_path / "base2new.csv", newline="") as file:
        rows = [" ".join(row) for row in csv.reader(file)]
    assert any("CoOp" in row for row in rows)
    assert "CoOp" in result.stdout and "CoOp" in (tmp_path / "base2new.html").read_text()
