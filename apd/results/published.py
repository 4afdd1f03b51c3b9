"""Figures that papers have published: ``configs/published/*.yaml``, one file a paper.

A file has
    paper, source: the paper's title, and where the figures were read.
    backbone: CLIP's name.
    threat_model: attack, norm, eps and alpha (in 1/255), source and whatever else the paper says of
        it, under the names that results have; left out where there are no robust figures.
    figures: a list of {table, method, dataset, clean, robust} and, where they apply, trained_on
        (the data set, if it is not ``dataset``), subsample (base or new) and shots. ``dataset`` is
        a name, or a list of names for a figure that is their average. Methods and data sets have
        this project's names.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from apd.about import CONFIGS
from apd.errors import UserError, listed, one_line, similar
from apd.files import read_yaml

FOLDER = CONFIGS / "published"
_FIELDS = {"table", "method", "dataset", "trained_on", "subsample", "shots", "clean", "robust"}


class Figure(NamedTuple):
    """A paper's accuracies of one method on one data set, or averaged over several."""

    table: str
    method: str
    datasets: tuple[str, ...]
    trained_on: str = ""  # "": the data set itself
    subsample: str = "all"
    shots: int | None = None  # None: a zero-shot method, or the paper does not say
    clean: float | None = None  # in percent
    robust: float | None = None


class Paper(NamedTuple):
    """A paper's figures, with the backbone and the threat model of all of them."""

    name: str
    title: str
    source: str
    backbone: str
    threat_model: dict
    figures: tuple[Figure, ...]


def papers() -> list[str]:
    """The names of the papers that come with this package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read_paper(name: str) -> Paper:
    """A paper by its name (see ``papers``), or a file of the same layout.

    Raises:
        UserError: no such paper, or a file that cannot be read or lacks something.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if not path.is_file():
        near = similar(name, papers(), 0.4) or papers()
        raise UserError(f"no published figures {name}: there are {listed(near)}, or give a file")
    content = read_yaml(path)
    try:
        figures = tuple(map(_figure, content["figures"]))
        paper = Paper(
            path.stem,
            content["paper"],
            content["source"],
            content["backbone"],
            content.get("threat_model") or {},
            figures,
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} does not hold published figures ({type(error).__name__}: {one_line(error)})"
        ) from error
    if not paper.threat_model and any(figure.robust is not None for figure in figures):
        raise UserError(f"{path} has robust figures, but no threat_model")
    return paper


def _figure(fields: dict) -> Figure:
    if unknown := fields.keys() - _FIELDS:
        raise ValueError(f"unknown {listed(sorted(unknown))}")
    fields = dict(fields)
    dataset = fields.pop("dataset")
    datasets = (dataset,) if isinstance(dataset, str) else tuple(dataset)
    return Figure(**{**fields, "table": str(fields["table"]), "datasets": datasets})
