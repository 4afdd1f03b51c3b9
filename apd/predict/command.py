"""Classify images with trained prompts.

    apd-predict RUN [RUN...] IMAGE|FOLDER|PATTERN... [--top 3] [--classes cat,dog]
    find photos -name '*.jpg' | apd-predict RUN - --json

RUN is a run's folder, one that save wrote, hf:USER/NAME, or a checkpoint of another project;
several of them have a column each. Folders are searched at any depth; - reads paths from the
standard input, one a line. No data set is needed.

Exit codes: 0 done, 1 some images could not be read (they are named, the others are classified), 2
bad input.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from tabulate import tabulate
from tqdm import tqdm

from apd.commandline import Parser
from apd.errors import UserError, exit_codes, one_line
from apd.files import check_writable, write_csv
from apd.images import open_rgb
from apd.models.arguments import add_flags, classifier, image_paths, short_names, split
from apd.ranges import whole

if TYPE_CHECKING:
    from apd.models.classifier import Prediction, PromptedClassifier

Row = tuple[str, "list[Prediction] | str"]  # a path, and each run's prediction or an error


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="apd-predict", description=__doc__)
    add = parser.add_argument
    add("arguments", nargs="+", metavar="RUN|IMAGE", help="runs, then images")
    add("--top", type=whole(1), default=1, help="how many classes to show (default: 1)")
    add("--batch-size", type=whole(1), default=64, help="images together (default: 64)")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print a JSON object a line")
    output.add_argument("--csv", metavar="FILE", help="write a line per image, run and class")
    add_flags(parser)
    return parser.parse_args(argv)


def predictions(
    models: Sequence[PromptedClassifier], paths: Iterator[str], top: int, batch_size: int
) -> Iterator[Row]:
    """For each path the predictions of all models, or the reason why it cannot be read."""
    while batch := list(islice(paths, batch_size)):
        images, faults = {}, {}
        for path in batch:
            try:
                images[path] = open_rgb(path)
            except ValueError as error:
                faults[path] = one_line(error)
        by_model = [model.predict(images.values(), top=top) for model in models] if images else []
        by_path = dict(zip(images, map(list, zip(*by_model))))
        for path in batch:
            yield path, by_path.get(path) or faults[path]


def table(rows: Sequence[Row], names: Sequence[str]) -> str:
    """A table of text with a row per image and a column per run; unreadable images are left out."""
    lines = [
        [
            path,
            *(
                ", ".join(f"{label} {probability:.1%}" for label, probability in prediction.top)
                for prediction in row
            ),
        ]
        for path, row in rows
        if not isinstance(row, str)
    ]
    return tabulate(lines, ["image", *names], disable_numparse=True)


def as_json(path: str, row: list[Prediction] | str, names: Sequence[str]) -> str:
    """A JSON object with "image" and either "error" or "predictions" by run."""
    if isinstance(row, str):
        return json.dumps({"image": path, "error": row})
    by_run = {name: prediction._asdict() for name, prediction in zip(names, row)}
    return json.dumps({"image": path, "predictions": by_run})


def csv_rows(rows: Sequence[Row], names: Sequence[str]) -> list[dict]:
    """A row per image, run and class, best class first."""
    return [
        {"image": path, "run": name, "rank": rank, "label": label, "probability": probability}
        for path, row in rows
        if not isinstance(row, str)
        for name, prediction in zip(names, row)
        for rank, (label, probability) in enumerate(prediction.top, start=1)
    ]


@exit_codes
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    sources, arguments = split(args.arguments)
    if args.csv:
        if not args.csv.lower().endswith(".csv"):  # --csv *.png would overwrite the first picture
            raise UserError(f"--csv {args.csv} must end in .csv: name the file to write")
        check_writable(Path(args.csv).parent, "--csv")
    if not arguments:
        raise UserError(f"which images is {sources[-1]} to classify? Name files or a folder")
    paths = image_paths(arguments)
    models = [classifier(source, args) for source in sources]
    names = short_names(sources, models)
    rows: list[Row] = []
    count = damaged = 0
    results = predictions(models, paths, args.top, args.batch_size)
    for path, row in tqdm(results, desc="apd-predict", unit="image", disable=None):
        count += 1
        if isinstance(row, str):
            damaged += 1
            print(f"{one_line(path)}: {row}", file=sys.stderr)
        if args.json:
            print(as_json(path, row, names), flush=True)
        else:
            rows.append((path, row))
    if args.csv and len(rows) > damaged:
        write_csv(args.csv, csv_rows(rows, names))
    elif not args.json:
        print(table(rows, names))
    if not count:
        raise UserError("the standard input names no images: give one path a line")
    return int(damaged > 0)


if __name__ == "__main__":
    sys.exit(main())
