"""GPU hours of a sweep, by method, before anything has run (see ``apd.sweep.estimate``).

python -m apd.sweep.cost SPEC.yaml [options of apd-sweep]
"""

from __future__ import annotations

import sys

from tabulate import tabulate

import apd
from apd.errors import exit_codes
from apd.sweep.command import parse_args, read_jobs
from apd.sweep.estimate import gpu_seconds


@exit_codes
def main(argv: list[str] | None = None) -> int:
    apd.register()
    jobs = read_jobs(parse_args(argv))
    hours: dict[str, list[float]] = {}
    for job in jobs:
        hours.setdefault(job.similarity_key[2], []).append(gpu_seconds(job) / 3600)
    hours["all"] = [value for trainer in hours.values() for value in trainer]
    table = [[name, len(values), f"{sum(values):,.1f}"] for name, values in hours.items()]
    print(tabulate(table, ["trainer", "cells", "GPU hours"], colalign=["left", "right", "right"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
