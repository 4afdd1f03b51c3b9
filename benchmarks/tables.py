"""How long apd-table takes over many runs, start-up included.

    python benchmarks/tables.py [--runs 2000] [--output FILE.json]

A few-shot sweep is made up in a temporary folder: 10 methods, 10 data sets, 1 to 16 shots, and as
many seeds as --runs allows. Each run's folder has what a real one has: results.json (10 KB) and,
under evaluations/, verdicts of 800 images; checkpoints and logs are empty. Each table is made by a
process of its own; it prints the best of three.
"""

from __future__ import annotations

import argparse
import itertools
import platform
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tabulate import tabulate

from apd.config import default
from apd.files import write_json
from apd.results import write_results

METHODS = (
    *("ZeroshotCLIP", "CoOp", "MaPLe", "APT", "AdvPT", "AdvVPT", "AdvIVLP", "AdvMaPLe", "FAP"),
    "APD",
)
SHOTS, DATA_SETS, IMAGES = (1, 2, 4, 8, 16), 10, 800
TABLES = ("few-shot", "cost")


def make_runs(root: Path, count: int) -> int:
    """Write about ``count`` runs below ``root``, and tell how many."""
    cfg = default()
    rng = random.Random(0)
    seeds = range(1, max(1, round(count / (len(METHODS) * DATA_SETS * len(SHOTS)))) + 1)
    grid = list(itertools.product(METHODS, range(DATA_SETS), SHOTS, seeds))
    for method, number, shots, seed in grid:
        folder = root / f"set{number}/{method}/vit_b32_{shots}shots/seed{seed}"
        cfg.SEED, cfg.DATASET.NUM_SHOTS, cfg.OUTPUT_DIR = seed, shots, str(folder)
        (folder / "prompt_learner").mkdir(parents=True)
        (folder / "prompt_learner/model.pth.tar-50").touch()
        (folder / "log.txt").touch()
        threat = {
            **dict(norm="linf", eps=4.0, alpha=1.0, steps=100, restarts=1, random_start=True),
            **dict(loss="ce", last_iterate=False, units="1/255", source="white-box"),
            **dict(precision="fp32", seed=seed),
        }
        lost = [rng.randint(-1, 1) for _ in range(IMAGES)]
        right = sum(one != -1 for one in lost), sum(one == 0 for one in lost)
        clean, attacked = (
            {
                **dict(attack=attack, threat_model=model, correct=correct, total=IMAGES),
                **dict(accuracy=100 * correct / IMAGES, seconds=1.0, images="all", flags={}),
            }
            for attack, model, correct in zip(("clean", "pgd-100"), (None, threat), right)
        )
        attacked["key"] = f"{rng.getrandbits(64):016x}"
        write_json(
            folder / f"evaluations/{attacked['key']}.json",
            {
                **dict(record=attacked, identity={"model": "m", "images": f"set{number}"}),
                **dict(lost_to=lost, labels=[0] * IMAGES),
            },
        )
        write_results(
            folder,
            {
                **dict(method=method, modality="text", dataset=f"Set{number}", classes=10),
                **dict(trainable_parameters=0 if method == "ZeroshotCLIP" else 1024),
                **dict(subsample="all", shots=shots, seed=seed, backbone="ViT-B/32"),
                **dict(host="embedded 1", prompts_from=None, fingerprint="m", epochs=50),
                **dict(evaluations=[clean, attacked], train_seconds=50.0, seconds=60.0),
                **dict(peak_memory=2**30, config=cfg),
            },
        )
    return len(grid)


def seconds(*arguments: str) -> float:
    """Of apd-table: the best of three."""
    command = [sys.executable, "-m", "apd.tables.command", *arguments]
    taken = []
    for _ in range(3):
        began = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        taken.append(time.perf_counter() - began)
    return min(taken)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--output", metavar="FILE.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        count = make_runs(Path(folder), args.runs)
        lines = {"start alone": seconds("--help")}
        for table in TABLES:
            lines[table] = seconds(folder, "--table", table)
        lines["few-shot, with the differences to APT"] = seconds(
            folder, "--table", "few-shot", "--baseline", "APT"
        )
        lines["default table, found from the runs"] = seconds(folder)
    print(f"{count:,} runs, {platform.machine()}, Python {platform.python_version()}")
    print(tabulate(lines.items(), ["apd-table", "seconds"], floatfmt=".2f"))
    if args.output:
        write_json(args.output, {"runs": count, "seconds": lines})


if __name__ == "__main__":
    main()
