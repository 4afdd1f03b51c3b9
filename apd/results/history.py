"""history.csv of a run: what training logged, a row per epoch."""

from __future__ import annotations

import csv
import math
from pathlib import Path

from apd.errors import UserError, one_line
from apd.results.schema import HISTORY_NAME


def read_history(run_dir: str | Path) -> dict[str, list[float]]:
    """The columns by name: epoch (from 1), lr, seconds, loss, and further terms that a method logs.

    Empty fields are NaN. A run without training has no columns.

    Raises:
        UserError: the file is damaged.
    """
    path = Path(run_dir) / HISTORY_NAME
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            header, *rows = csv.reader(file, strict=True)
        numbers = [[float(field) if field else math.nan for field in row] for row in rows]
        columns = dict(zip(header, map(list, zip(*numbers, strict=True)), strict=True))
        if "epoch" not in columns:
            raise ValueError("no column epoch")
        if not all(map(math.isfinite, columns["epoch"])):
            raise ValueError("an epoch is no number")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path} is damaged ({one_line(error)}): delete it") from error
    return columns
