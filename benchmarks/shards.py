"""Wall time of one evaluation in shards, beside the same in one process.

    python benchmarks/shards.py [--attack pgd-300] [--eps 0.1] [--shards 2] [--output FILE.json]

Zero-shot mini CLIP on all 800 test digits, by ``apd-eval``, from the start of the command to its
end: 1 process of one thread, 1 process of as many threads as there are shards, and that many
processes of one thread each. Start-up is what the same command takes for one step on an image per
shard: imports, the model, the data, and the merge. It is paid once however long an evaluation is;
"evaluation" is what is left without it: minutes in one process, so that it is what counts. The
verdicts are compared image by image.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tabulate import tabulate

from apd.files import write_json
from apd.results import EVALUATIONS


def command(module: str, *arguments: object, threads: int = 1) -> float:
    """Run it; its seconds."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        check=True,
        env=environment,
        stdout=subprocess.DEVNULL,
    )
    return time.perf_counter() - began


def verdicts(run: Path, attack: str) -> list[int]:
    found = (json.loads(path.read_text()) for path in (run / EVALUATIONS).glob("*.json"))
    (lost_to,) = [one["lost_to"] for one in found if one["record"]["attack"] == attack]
    return lost_to


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--attack", default="pgd-300")
    parser.add_argument("--eps", type=float, default=0.1)
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--subset", type=int, default=0)
    parser.add_argument("--root", default="data")
    parser.add_argument("--output", default="output/benchmarks/shards.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        configs = ["--config-file", "configs/trainers/ZeroshotCLIP/mini.yaml"]
        configs += ["--dataset-config-file", "configs/datasets/digits.yaml"]
        where = ["--root", args.root, "--output-dir", run]
        options = "--trainer ZeroshotCLIP --seed 1 AT.TEST.STEPS 1".split()
        command("apd.train", *where, *configs, *options)
        shards = args.shards
        variants = {
            "1 process, 1 thread": (1, []),
            f"1 process, {shards} threads": (shards, []),
            f"{shards} processes, 1 thread each": (1, ["--shards", shards, "--threads", 1]),
        }
        found = {}
        startup, total = (dict.fromkeys(variants, float("inf")) for _ in range(2))
        for _ in range(args.rounds):
            for name, (threads, more) in variants.items():
                copy = shutil.copytree(run, Path(folder, "copy"))
                asked = [copy, "--eps", args.eps, *more]
                short = ["--attack", "pgd-1", "--subset", shards]
                whole = ["--attack", args.attack, "--subset", args.subset]
                for best, which in ((startup, short), (total, whole)):
                    seconds = command("apd.arguments.evaluate", *asked, *which, threads=threads)
                    best[name] = min(best[name], seconds)
                found[name] = verdicts(copy, args.attack)
                shutil.rmtree(copy)
    first, *_ = variants
    evaluation = {name: total[name] - startup[name] for name in variants}
    rows = []
    for name in variants:
        same = sum(a == b for a, b in zip(found[name], found[first]))
        row = {
            "variant": name,
            "start-up (s)": startup[name],
            "evaluation (s)": evaluation[name],
            "total (s)": total[name],
            "evaluation, times faster": evaluation[first] / evaluation[name],
            "total, times faster": total[first] / total[name],
            "same verdicts": f"{same} of {len(found[first])}",
        }
        rows.append(row)
    formats = ("", ".1f", ".1f", ".1f", ".2f", ".2f", "")
    print(tabulate(rows, headers="keys", floatfmt=formats))
    write_json(args.output, {**vars(args), "rows": rows})


if __name__ == "__main__":
    main()
