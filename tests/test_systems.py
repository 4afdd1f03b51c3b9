"""What systems without POSIX's modules (Windows) can do: everything but sweeps and shards."""

import os
import subprocess
import sys

PROGRAM = """
import os, signal, sys
sys.modules["fcntl"] = sys.modules["resource"] = None
del os.fork, signal.pthread_sigmask
if hasattr(os, "sched_getaffinity"):
    del os.sched_getaffinity

from apd.train.command import main as train
from apd.arguments.evaluate import main as evaluate
from apd.figures.command import main as plot
from apd.arguments.convert import main as convert
from apd.report.command import main as report
from apd.results import read_results
from apd.sweep.command import main as sweep
from apd.tables.command import main as table

short = "OPTIM.MAX_EPOCH 3 DATASET.NUM_SHOTS 1 AT.TEST.SUBSET 20 AT.TEST.STEPS 2".split()
files = ["--config-file", "configs/trainers/CoOp/mini.yaml"]
files += ["--root", "data", "--dataset-config-file", "configs/datasets/digits.yaml"]
run = [*files, "--trainer", "CoOp", "--seed", "1", "--output-dir"]
assert train([*run, "run", *short]) == 0
assert evaluate(["run", "--attack", "fgsm"]) == 0
assert table(["run"]) == 0
assert plot(["run", "-o", "figures", "--kind", "training"]) == 0
assert report(["run", "-o", "report.html"]) == 0
assert convert(["run", "converted"]) == 0
assert read_results("run")["peak_memory"] is None

print("refused", file=sys.stderr)
assert evaluate(["run", "--attack", "fgsm", "--eps", "2", "--shards", "2"]) == 2
assert evaluate(["run", "--attack", "fgsm", "--eps", "2", "--shard", "1/2"]) == 2
assert train([*run, "other", *short, "AT.TEST.SHARDS", "2"]) == 2
assert sweep(["configs/sweeps/demo.yaml"]) == 2
"""


def test_training_evaluation_and_tables_need_no_posix(tmp_path):
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, sys.path))},
    )
    assert found.returncode == 0, found.stderr
    refused = [
        line for line in found.stderr.partition("refused\n")[2].splitlines() if "err" in line
    ]
    assert len(refused) == 4 and all("file locks" in line for line in refused), refused
