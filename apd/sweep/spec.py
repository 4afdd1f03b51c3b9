"""A sweep's specification, a YAML file, becomes the jobs of its cells.

    base: main_table.yaml       # another file in the same folder; keys of this file replace its
                                # keys (in grid: each key for itself)
    output: output              # folder of the runs (default: output)
    root: data                  # folder of the data sets (default: data)
    protocol: few-shot          # or base-to-new, or transfer (default: few-shot)
    targets: [letters]          # of transfer: the data sets to test on
    grid:                       # one cell for each combination; one value needs no list
      trainer: [AdvIVLP, APD]
      config: mini              # configs/trainers/<trainer>/mini.yaml, or a path
      dataset: digits           # configs/datasets/digits.yaml, or a path
      shots: [1, 16]            # -1: all training images
      seed: [1, 2, 3]
      backbone: ViT-B/32        # may be left out, as --backbone of train.py
      OPTIM.LR: [0.001, 0.01]   # any config key; it becomes a part of the folder's name
      DATASET.CLASSES: [1/3/0, 2/3/0, 3/3/0]   # tasks; each has a folder beside the data set's
    variants:                   # grids that are added to the one above, one after another
      - {}
      - {TRAINER.APD.TAU: [2.0, 4.0]}
                                # lists of grids: each of the first list with each of the next
    set:                        # config keys for every cell
      TRAIN.PRINT_FREQ: 50
    where:                      # config keys for cells with these grid values
      - {trainer: [CoOp, APT], shots: 1, set: {OPTIM.MAX_EPOCH: 50}}
    search:                     # replaces variants and the grid's trainers: trials evaluated on
      budget: 3                 # validation images (all, unless DATASET.VAL_SHOTS says otherwise);
      trials:                   # every trainer must have ``budget`` trials
        AdvIVLP:
          - {OPTIM.LR: [0.01, 0.03, 0.1]}
        APD:
          - {OPTIM.LR: [0.01, 0.03]}
          - {OPTIM.LR: 0.03, TRAINER.APD.TAU: 4.0}
    chosen: search.json         # written by apd-table --table search --json: config keys that the
                                # search chose for each trainer; variants and where override them

A value that is a list itself stands in a list: ``INPUT.TRANSFORMS: [[random_flip]]``.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from math import prod
from pathlib import Path

from apd.classes import RULE, folder_name
from apd.config import default, find_config, flat
from apd.errors import UserError, listed, similar
from apd.files import read_json, read_yaml
from apd.sweep.training_job import TrainingJob

_TOP = {"base", "output", "root", "protocol", "targets", "grid", "variants", "set", "where"}
_TOP |= {"search", "chosen"}
_NEEDED = ("trainer", "config", "dataset", "shots", "seed")
_AXES = {*_NEEDED, "backbone"}
_SET_ELSEWHERE = {  # config keys that the sweep sets itself -> what to write instead
    "DATASET.NUM_SHOTS": "shots",
    "DATASET.ROOT": "root",
    "OUTPUT_DIR": "output",
    "RESUME": "the same command again: it resumes",
    "SEED": "seed",
    "TRAINER.NAME": "trainer",
}
_PROTOCOLS = ("few-shot", "base-to-new", "transfer")


def read_spec(path: str | os.PathLike, **replaced) -> list[TrainingJob]:
    """The jobs of a specification, in the order of the grid; each has a folder of its own.

    Args:
        path: the file, or the name under which the package ships it (configs/sweeps/...).
        replaced: output, root, targets, chosen or grid axes that replace the file's; and ``set``,
            config keys that are added to the file's and override those of ``where`` too.

    Raises:
        UserError: no such file, bad YAML, an unknown key, a missing one, or a value of a wrong
            kind. The configs that a job names are read later, by its ``setup``.
    """
    file = find_config(str(path))
    try:
        return list(_expand(_checked(_read(Path(file))), replaced))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def spec_files(path: str | os.PathLike) -> list[Path]:
    """The file of a specification, which can be read, and its bases."""
    file = Path(find_config(str(path)))
    base = read_yaml(file).get("base")
    return [file, *(spec_files(file.parent / str(base)) if base is not None else [])]


# -- reading and checking --------------------------------------------------------------------------


def _read(path: Path, above: tuple[Path, ...] = ()) -> dict:
    """The mapping in a file; its keys replace those of its base."""
    if path in above:
        raise UserError(f"{path.name} is its own base")
    try:
        spec = read_yaml(path)
    except UserError as error:
        raise UserError(str(error).removeprefix(f"{path}: ")) from error
    if (name := spec.pop("base", None)) is not None:
        try:
            base = _read(path.parent / str(name), (*above, path))
        except UserError as error:
            raise UserError(f"base {name}: {error}") from error
        grids = [
            mapping["grid"] for mapping in (base, spec) if isinstance(mapping.get("grid"), dict)
        ]
        spec = {**base, **spec}
        if len(grids) == 2:
            spec["grid"] = {**grids[0], **grids[1]}
    return spec


def _checked(spec: dict) -> dict:
    _check_keys(spec, _TOP, "the sweep")
    spec = {"output": "output", "root": "data", "protocol": "few-shot", "targets": [], **spec}
    for key in ("grid", "set"):
        spec[key] = spec.get(key) or {}
    spec["variants"] = spec.get("variants") or [{}]
    spec["where"] = spec.get("where") or []
    for key, kind in (("grid", dict), ("set", dict), ("variants", list), ("where", list)):
        if not isinstance(spec[key], kind):
            raise UserError(f"{key} is no {'mapping' if kind is dict else 'list'}")
    spec["variants"] = _combined(spec["variants"])
    if spec["protocol"] not in _PROTOCOLS:
        raise UserError(f"protocol is {spec['protocol']}: use {', '.join(_PROTOCOLS)}")
    configs = _config_keys()
    _check_keys(spec["grid"], _AXES | configs, "grid")
    _check_keys(spec["set"], configs, "set")
    for number, variant in enumerate(spec["variants"], start=1):
        _check_keys(variant, _AXES | configs, f"variant {number}")
    for number, rule in enumerate(spec["where"], start=1):
        name = f"rule {number} of where"
        _check_keys(rule, _AXES | configs | {"set"}, name)
        if not isinstance(rule.get("set"), dict):
            raise UserError(f"{name} has no mapping named set")
        _check_keys(rule["set"], configs, name)
    if (search := spec.setdefault("search", None)) is not None:
        _check_search(search, configs)
        if spec["variants"] != [{}] or spec["protocol"] != "few-shot":
            raise UserError("a search has no variants, and no protocol but few-shot")
    return spec


def _combined(variants: list) -> list:
    """Variants as one list of grids.

    Several lists of grids become all their combinations, in which the last list varies fastest.
    """
    lists = all(isinstance(variant, list) for variant in variants)
    if not lists or not all(isinstance(grid, dict) for grids in variants for grid in grids):
        return variants  # one that is no mapping is refused later, where variants are checked
    return [
        {key: value for grid in grids for key, value in grid.items()}
        for grids in itertools.product(*variants)
    ]


def _check_search(search, configs: set[str]) -> None:
    _check_keys(search, {"budget", "trials"}, "search")
    budget, trials = search.get("budget"), search.get("trials")
    if type(budget) is not int or not isinstance(trials, dict) or not trials:
        raise UserError("search needs budget, a number, and trials, a mapping of trainers to lists")
    for trainer, tried in trials.items():
        for number, trial in enumerate(_listed(tried), start=1):
            _check_keys(trial, configs, f"trial {number} of {trainer}")
        count = sum(prod(len(_listed(v)) for v in trial.values()) for trial in _listed(tried))
        if count != budget:
            raise UserError(
                f"search: {trainer} has {count} trials, the budget is {budget} for each"
            )


def _check_keys(mapping, allowed: set[str], name: str) -> None:
    """Raise UserError unless what the file calls ``name`` is a mapping with allowed keys only."""
    if not isinstance(mapping, dict):
        raise UserError(f"{name} is no mapping")
    for key in mapping:
        if key in _SET_ELSEWHERE.keys() - allowed:
            raise UserError(f'{name} has the key "{key}": use {_SET_ELSEWHERE[key]}')
        if key not in allowed:
            near = similar(str(key), allowed)
            hint = f"did you mean {', '.join(near)}?" if near else "there is no such key"
            raise UserError(f'{name} has the key "{key}": {hint}')


def _config_keys() -> set[str]:
    return {key for key, _ in flat(default())} - _SET_ELSEWHERE.keys()


# -- expanding -------------------------------------------------------------------------------------


def _expand(spec: dict, replaced: dict) -> Iterator[TrainingJob]:
    replaced = {key: value for key, value in replaced.items() if value is not None}
    forced = replaced.pop("set", {})
    _check_keys(forced, _config_keys(), "--set")
    spec |= {key: replaced.pop(key) for key in _TOP & replaced.keys()}
    if spec["protocol"] == "transfer" and not spec["targets"]:
        raise UserError("the protocol transfer needs targets")
    variants = spec["variants"]
    if search := spec["search"]:
        trainers = _listed(replaced.pop("trainer", list(search["trials"])))
        if unknown := [name for name in trainers if name not in search["trials"]]:
            raise UserError(f"search has no trials of {listed(unknown)}")
        variants = [
            {"trainer": name, **trial}
            for name in trainers
            for trial in _listed(search["trials"][name])
        ]
        spec["set"] = {"DATASET.VAL_SHOTS": 0, **spec["set"]}
    spec["chosen"] = _read_chosen(spec.get("chosen"))
    argv_by_folder: dict[str, tuple] = {}
    for variant in variants:
        grid = {**spec["grid"], **variant, **replaced}
        if lacking := [key for key in _NEEDED if key not in grid]:
            raise UserError(f"grid lacks {', '.join(lacking)}")
        for values in itertools.product(*map(_listed, grid.values())):
            point = dict(zip(grid, values))
            _check_values(point)
            for job in _jobs_at(spec, point, forced):
                if job.folder in argv_by_folder:
                    raise UserError(f"two cells have the folder {job.folder}")
                argv_by_folder[job.folder] = job.argv
                yield job


def _read_chosen(path: str | None) -> dict[str, dict]:
    """Trainer -> the config keys that a search chose, with their values."""
    if not path:
        return {}
    how = "apd-table RUNS --table search --json FILE makes it"
    try:
        tables = read_json(path)["tables"]
        (chosen,) = (table["chosen"] for table in tables if table["name"] == "search")
        for trainer, keys in chosen.items():
            if keys is None:
                raise UserError(f"{path} has chosen nothing for {trainer}: its trials lack runs")
            _check_keys(keys, _config_keys(), f"{path}, {trainer}")
    except OSError as error:
        raise UserError(f"chosen {path}: {error.strerror}; {how}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"chosen {path} is no search table in JSON; {how}") from error
    return chosen


def _listed(value) -> list:
    if value == []:
        raise UserError("an empty list leaves no cells")
    return value if isinstance(value, list) else [value]


def _check_values(point: dict) -> None:
    shots, seed = point["shots"], point["seed"]
    if type(shots) is not int or shots < 1 and shots != -1:
        raise UserError(f"shots is {shots!r}: use a number from 1, or -1 for all images")
    if type(seed) is not int or seed < 0:
        raise UserError(f"seed is {seed!r}: use a number from 0")
    for key in _AXES & point.keys() - {"shots", "seed"}:
        if not isinstance(point[key], str):
            raise UserError(f"{key} is {point[key]!r}: use a name")


def _jobs_at(spec: dict, point: dict, forced: dict) -> Iterator[TrainingJob]:
    """The job of one point of the grid, and those of the evaluations that the protocol adds."""
    output, trainer, shots, seed = spec["output"], point["trainer"], point["shots"], point["seed"]
    dataset, config = point["dataset"], point["config"]
    options = {key: value for key, value in point.items() if key not in _AXES}
    place = _task_folder(dataset, options.get("DATASET.CLASSES", []))
    parts = [f"backbone={point['backbone']}"] if "backbone" in point else []
    parts += [
        f"{key.removeprefix('TRAINER.')}={value}"
        for key, value in options.items()
        if key != "DATASET.CLASSES"
    ]
    # the backbone and other config keys become part of the config's name in the folder's path
    name = "+".join([_stem(config), *(re.sub(r"[^\w.=-]+", "-", text) for text in parts)])
    for rule in spec["where"]:
        if all(point.get(key) in _listed(rule[key]) for key in rule.keys() - {"set"}):
            options |= rule["set"]
    options = {**spec["set"], **spec["chosen"].get(trainer, {}), **options, **forced}
    if spec["search"]:
        options["TEST.SPLIT"] = "val"

    def job(folder: str, dataset: str = dataset, needs: str = "", **more) -> TrainingJob:
        argv = ["--root", spec["root"], "--seed", seed, "--trainer", trainer]
        argv += ["--dataset-config-file", _file(dataset, "configs/datasets")]
        argv += ["--config-file", _file(config, f"configs/trainers/{trainer}")]
        argv += ["--output-dir", folder]
        if "backbone" in point:
            argv += ["--backbone", point["backbone"]]
        if needs:
            argv += ["--eval-only", "--model-dir", needs]
        for key, value in {**options, **more, "DATASET.NUM_SHOTS": shots}.items():
            argv += [key, value]
        similarity_key = (bool(needs), _stem(dataset), trainer, name, shots)
        return TrainingJob(
            folder=folder,
            output=str(output),
            needs=needs,
            argv=tuple(map(str, argv)),
            similarity_key=similarity_key,
        )

    if spec["protocol"] == "base-to-new":
        run = f"{place}/shots_{shots}/{trainer}/{name}/seed{seed}"
        base = job(f"{output}/base2new/train_base/{run}", **{"DATASET.SUBSAMPLE_CLASSES": "base"})
        yield base
        yield job(
            f"{output}/base2new/test_new/{run}",
            needs=base.folder,
            **{"DATASET.SUBSAMPLE_CLASSES": "new"},
        )
        return
    above = "search/" if spec["search"] else ""
    run = f"{above}{place}/{trainer}/{name}_{shots}shots"
    source = job(f"{output}/{run}/seed{seed}")
    yield source
    if spec["protocol"] == "transfer":
        for target in _listed(spec["targets"]):
            folder = f"{output}/evaluation/{run}/{_stem(target)}/seed{seed}"
            yield job(folder, target, needs=source.folder)


def _task_folder(dataset: str, classes) -> str:
    try:
        return folder_name(_stem(dataset), classes)
    except ValueError as error:
        raise UserError(f"DATASET.CLASSES is {classes}: use {RULE}") from error


def _stem(name: str) -> str:
    return Path(name).stem if name.endswith((".yaml", ".yml")) else name


def _file(name: str, folder: str) -> str:
    return name if name.endswith((".yaml", ".yml")) else f"{folder}/{name}.yaml"
