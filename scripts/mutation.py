"""Called by mutation.sh in a copy of the clone: its files are changed in place.

A place in the code that can be changed is drawn first, and then one of the changes there, so that
places with many of them (every comparison has eleven) do not fill the sample.
"""

from __future__ import annotations

import random
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

from cosmic_ray.commands import init
from cosmic_ray.modules import find_modules
from cosmic_ray.mutating import mutate_and_test
from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import MutationSpec

NEAREST = {  # folder of modules -> of their tests
    "apd/attacks": ["tests/attacks"],
    "apd/evaluate": ["tests/evaluate", "tests/results"],
    "apd/distill": ["tests/distill", "tests/trainers/test_steps.py"],
    "apd/tables": ["tests/tables", "tests/results"],
    "trainers": ["tests/trainers", "tests/faithfulness"],
}
TIMEOUT = 900  # seconds; what runs longer hangs, and counts as noticed
ANNOTATIONS = "core/ReplaceBinaryOperator_BitOr"  # "str | None": never run


def places(modules: list[Path]) -> list[list[MutationSpec]]:
    """All that can be changed, by place."""
    found = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        with use_db(f"{folder}/mutants.sqlite", WorkDB.Mode.create) as database:
            init(modules, database, {})
            for item in database.work_items:
                (mutant,) = item.mutations
                if not mutant.operator_name.startswith(ANNOTATIONS):
                    found[mutant.module_path, mutant.start_pos, mutant.end_pos].append(mutant)
    key = lambda mutant: (mutant.operator_name, mutant.occurrence)  # noqa: E731
    return [sorted(found[place], key=key) for place in sorted(found)]


def nearest(module: Path) -> list[str]:
    """The tests of a module's folder, those named after the module first."""
    (folder,) = (name for name in NEAREST if module.is_relative_to(name))
    files = [str(path) for name in NEAREST[folder] for path in sorted(Path().glob(f"{name}*"))]
    tests = [
        str(path)
        for name in files
        for path in (sorted(Path(name).glob("test_*.py")) if Path(name).is_dir() else [Path(name)])
    ]
    return sorted(tests, key=lambda name: module.stem not in name)


def main(seed: str, count: str, *modules: str) -> None:
    draw = random.Random(int(seed))
    found = places(sorted(find_modules(map(Path, modules or NEAREST))))
    sample = draw.sample(found, min(int(count), len(found)))
    print(f"{len(sample)} of {len(found):,} places, seed {seed}", flush=True)
    ends: Counter = Counter()
    for number, place in enumerate(sample, start=1):
        mutant = draw.choice(place)
        command = "python -m pytest -q -x -p no:cacheprovider --no-header "
        result = mutate_and_test(
            [mutant], command + " ".join(nearest(mutant.module_path)), timeout=TIMEOUT
        )
        end = str(result.test_outcome and result.test_outcome.value)
        ends["timeout" if result.output == "timeout" else end] += 1
        where = f"{mutant.module_path}:{mutant.start_pos[0]}"
        print(f"{number:3} {end:9} {where} {mutant.operator_name}", flush=True)
        if end != "killed":
            print(result.diff, flush=True)
    print(", ".join(f"{count} {end}" for end, count in ends.items()))


if __name__ == "__main__":
    main(*sys.argv[1:])
