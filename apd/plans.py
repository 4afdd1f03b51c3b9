"""Plans: the cells that a sweep is going to run, written and committed before any of them runs.

    apd-sweep SPEC --plan FILE            # write it; git add FILE; git commit
    apd-table RUN... --plan FILE          # say which runs follow it, and which cells have not run

FILE is JSON (schema 1):
    spec, spec_sha256: the sweep's file, and of its text and that of its bases.
    made: when, in UTC.
    git_commit: of the clone that wrote it, "-dirty" after it if files had changed.
    finished: how many of its cells had results already: a plan comes before them.
    keys: the config keys that the hashes below are of.
    cells: for each its folder (below the sweep's output), and the SHA-256 of its configuration.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Collection, Iterable
from datetime import datetime, timezone
from functools import cache
from pathlib import Path

from apd.config import HARMLESS, KEYS, flat, unread
from apd.errors import UserError, counted, listed, one_line
from apd.files import atomic_write, parse_json
from apd.results.schema import environment, kind_faults

SCHEMA_VERSION = 1
_FIELDS = {
    **dict.fromkeys(("spec", "spec_sha256", "made"), (str,)),
    **dict.fromkeys(("schema", "finished"), (int,)),
    **dict.fromkeys(("keys", "cells"), (list,)),
    "git_commit": (str, type(None)),
}


_OF_CELL = dict.fromkeys(("folder", "sha256"), (str,))


def config_sha256(config: dict, evaluates: bool, keys: Collection[str] | None = None) -> str:
    """The SHA-256 of all in a run's config that can change its result.

    Args:
        evaluates: whether it only evaluates prompts of another run.
        keys: the keys of a plan; other keys are left out if they have their default, so that a
            key of a later version changes no hash. None: all keys.
    """
    defaults = dict(flat(KEYS))
    values = {**defaults, **dict(flat(config))}
    skipped = unread(str(values.get("TRAINER.NAME", "")))
    counts = {
        key: value
        for key, value in values.items()
        if key not in HARMLESS
        and not key.startswith(skipped)
        and (keys is None or key in keys or key not in defaults or value != defaults[key])
    }
    text = json.dumps([evaluates, counts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def write_plan(
    path: Path, spec: list[Path], configs: dict[str, tuple[dict, bool]], finished: int
) -> None:
    """Write a plan; see the module's docstring.

    Args:
        spec: the sweep's file, and its bases.
        configs: folder of each cell -> its config, and whether it only evaluates.
        finished: how many of them have results.

    Raises:
        UserError: the file is there already: a plan is not changed.
    """
    if path.exists():
        raise UserError(f"--plan {path} is there already: give another name, or remove it first")
    keys = {key for config, _ in configs.values() for key, _ in flat(config)}
    head = {
        "schema": SCHEMA_VERSION,
        "spec": spec[0].as_posix(),
        "spec_sha256": hashlib.sha256(b"\0".join(file.read_bytes() for file in spec)).hexdigest(),
        "made": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "git_commit": environment()["git_commit"],
        "finished": finished,
        "keys": sorted(keys),
    }
    cells = [
        {"folder": folder, "sha256": config_sha256(config, evaluates)}
        for folder, (config, evaluates) in configs.items()
    ]
    fields = [f' "{name}": {json.dumps(value)}' for name, value in head.items()]
    # a line for each cell, so that a change can be read in git's diff
    fields.append(' "cells": [\n  ' + ",\n  ".join(map(json.dumps, cells)) + "\n ]")
    with atomic_write(path) as temporary:
        temporary.write_text("{\n" + ",\n".join(fields) + "\n}\n", encoding="utf-8")


class Plan:
    """A plan's file, in all versions that were committed.

    Raises:
        UserError: it is not committed as it is, or no plan.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            content = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--plan {path}: cannot be read ({one_line(error)})") from error
        self.now = _read(str(path), content)
        log = self._git("log", "--format=%H", "--", path.name)
        if not log or self._git("diff", "--quiet", "HEAD", "--", path.name) is None:
            raise UserError(f"--plan {path} is not committed as it is: commit it before its runs")
        self.versions = {}  # commit -> plan, the newest first
        for commit in log.split():
            if version := self._git("show", f"{commit}:./{path.name}"):
                self.versions[commit] = _read(f"{path} of {commit[:7]}", version)

    def verdict(self, run: dict) -> str:
        """Why a run does not follow the plan; "": it does. ``run`` is its results."""
        holding = [
            commit
            for commit, plan in self.versions.items()
            if _sha256(plan, run) in {cell["sha256"] for cell in plan["cells"]}
        ]
        if not holding:
            return "not in the plan"
        made_at, _, dirty = (run.get("git_commit") or "").partition("-")
        if not made_at:
            return "of no known commit"
        if self._git("cat-file", "-e", f"{made_at}^{{commit}}") is None:
            return "of a commit that this clone does not have"
        if not any(self._before(commit, made_at) for commit in holding):
            return "of a commit without the plan"
        return "of a clone with changed files" if dirty else ""

    def not_run(self, runs: Iterable[dict]) -> list[str]:
        """The folders of the plan's cells that have no run among these."""
        ran = {_sha256(self.now, run) for run in runs}
        return [cell["folder"] for cell in self.now["cells"] if cell["sha256"] not in ran]

    def verdicts(self, runs: dict[Path, dict]) -> dict[Path, str]:
        """``verdict`` of each run, by its folder."""
        return {folder: self.verdict(run) for folder, run in runs.items()}

    def notes(self, runs: dict[Path, dict]) -> list[str]:
        """Lines below a table of these runs: which of them follow the plan, what has not run."""
        verdicts = self.verdicts(runs)
        followed = list(verdicts.values()).count("")
        commit = next(iter(self.versions))
        lines = [
            f"plan {self.path} ({commit[:7]}, made {self.now['made']}): followed by "
            f"{followed:,} of {counted(len(runs), 'run')}"
        ]
        if self.now["finished"]:
            lines.append(f"{counted(self.now['finished'], 'cell')} had results before the plan")
        for why in sorted(set(verdicts.values()) - {""}):
            names = [str(folder) for folder, verdict in verdicts.items() if verdict == why]
            lines.append(f"{counted(len(names), 'run')} {why}: {listed(names, 3)}")
        if not_run := self.not_run(runs.values()):
            lines.append(
                f"of the plan's {counted(len(self.now['cells']), 'cell')}, {len(not_run):,} have "
                f"no run here: {listed(not_run, 3)}"
            )
        return lines

    def _before(self, commit: str, other: str) -> bool:
        return self._git("merge-base", "--is-ancestor", commit, other) is not None

    @cache  # noqa: B019  many runs have the same commit, and there are few plans
    def _git(self, *command: str) -> str | None:
        """The output of a git command in the plan's folder; None: it failed."""
        git = ["git", "-C", str(self.path.resolve().parent)]
        try:
            process = subprocess.run([*git, *command], capture_output=True, text=True)
        except OSError:  # no git
            return None
        return process.stdout if process.returncode == 0 else None


def _read(name: str, content: str) -> dict:
    try:
        plan = parse_json(content)
        faults = kind_faults(plan, _FIELDS, {})
        faults += [f for cell in plan.get("cells", []) for f in kind_faults(cell, _OF_CELL, {})][:1]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        faults = [f"is none ({one_line(error)})"]
    if not faults and plan["schema"] != SCHEMA_VERSION:
        faults = [f"has schema {plan['schema']}, this version reads {SCHEMA_VERSION}"]
    if faults:
        raise UserError(f"plan {name} {listed(faults, 3)}: write it with apd-sweep --plan")
    return plan


def _sha256(plan: dict, run: dict) -> str:
    evaluates = run.get("prompts_from") is not None
    return config_sha256(run["config"], evaluates, frozenset(plan["keys"]))
