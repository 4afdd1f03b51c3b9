"""The record of what prompts were trained on, and whether another configuration may use them.

A run's results.json and its checkpoints have it as ``trained_on``:
    method, dataset, subsample, shots, seed: of the run that trained them.
    keys: the config keys without which the prompts give other logits, with their values.
    backbone_sha256: of the CLIP (``apd.clip.backbone_sha256``); None: not known.
An evaluation of another run's prompts has that run's record. It is None where nothing was trained,
and where it is not known what the prompts were trained on.
"""

from __future__ import annotations

from pathlib import Path

from apd.config import flat, unread
from apd.errors import UserError
from apd.methods import METHODS
from apd.results.schema import RESULTS_NAME, read_results, trained_on_faults

FIELDS = ("method", "dataset", "subsample", "shots", "seed")
_OF_PROMPTS = {  # of TRAINER.<section>
    *("N_CTX", "N_CTX_TEXT", "N_CTX_VISION"),
    *("PROMPT_DEPTH", "PROMPT_DEPTH_TEXT", "PROMPT_DEPTH_VISION"),
    *("CTX_INIT", "CSC", "CLASS_TOKEN_POSITION", "COUPLED", "NUM_EXPERTS"),
}
_OF_IMAGES = {"INPUT.SIZE", "INPUT.INTERPOLATION"}
_OF_BACKBONE = {f"MODEL.BACKBONE.{key}" for key in ("NAME", "ROBUST", "RESOLUTION")}
_TEMPLATE = "DATASET.FOLDER.TEMPLATE"
_OF_TRAINING = (
    *("AT.TRAIN.", "DATALOADER.TRAIN_X.", "INPUT.", "OPTIM.", "TRAIN.", "TRAINER."),
    "TEST.FINAL_MODEL",
)


def training(run: dict, config: dict, backbone_sha256: str | None = None) -> dict:
    """The record of the prompts that a run with this config trains.

    Args:
        run: the run's results, or at least the ``FIELDS`` of these.
    """
    return {
        **{field: run[field] for field in FIELDS},
        "keys": {k: v for k, v in flat(config) if _changes_meaning(k, run["method"])},
        "settings": {
            k: v
            for k, v in flat(config)
            if k.startswith(_OF_TRAINING) and not k.startswith(unread(run["method"]))
        },
        "backbone_sha256": backbone_sha256,
    }


def _changes_meaning(key: str, method: str) -> bool:
    if key in _OF_IMAGES or key in _OF_BACKBONE or key == _TEMPLATE:
        return True
    group, _, name = key.partition(".")
    section, _, name = name.partition(".")
    ours = METHODS[method].section if method in METHODS else section
    return group == "TRAINER" and section == ours and name in _OF_PROMPTS


def check_meaning(trained: dict, current: dict, where) -> None:
    """Raise unless prompts may be used in a configuration: all keys of ``trained`` must agree.

    Args:
        trained: the prompts' record.
        current: the record that the present configuration would give.
        where: what to call the prompts in an error.

    Raises:
        UserError: it names each key that differs, with both values.
    """
    here, there = (
        dict(map(_without_section, record["keys"].items())) for record in (current, trained)
    )
    hashes = {current["backbone_sha256"], trained["backbone_sha256"]}
    same_backbone = len(hashes) == 1 and None not in hashes
    other_data = trained["dataset"] != current["dataset"]
    faults = []
    for name in there.keys() & here.keys():
        (_, was), (key, value) = there[name], here[name]
        free = (other_data and key == _TEMPLATE) or (same_backbone and key in _OF_BACKBONE)
        if was != value and not free:
            faults.append(f"{key} {was!r}, not {value!r}")
    if not faults and len(hashes - {None}) == 2:
        faults = [
            f"other weights than MODEL.BACKBONE.NAME {here['MODEL.BACKBONE.NAME'][1]!r} has here "
            f"(SHA-256 {trained['backbone_sha256'][:12]}, not {current['backbone_sha256'][:12]})"
        ]
    if faults:
        raise UserError(
            f"{where} was trained with {'; '.join(sorted(faults))}: give what it was trained with, "
            "its prompts mean something else otherwise"
        )


def _without_section(item: tuple[str, object]) -> tuple[str, tuple[str, object]]:
    """The key's last name, then the key and its value.

    The prompts of a teacher can have their keys in another section of TRAINER than the student's,
    so that keys are compared by their last name.
    """
    key, _ = item
    return (key.rpartition(".")[2] if key.startswith("TRAINER.") else key), item


def trained_on(folder: Path, results: dict) -> dict | None:
    """The record of the prompts that the run in ``folder`` trained or evaluated.

    Results of earlier versions have no record. Then it is made from their config or, where they
    evaluate another run's prompts, from that run's results, if that run still exists.
    """
    if "trained_on" in results:
        return results["trained_on"]
    if not results["trainable_parameters"]:
        return None
    if (source := results.get("prompts_from")) is None:
        return training(results, results["config"])
    for place in _places(folder, results["config"], source.get("model_dir") or ""):
        if (place / RESULTS_NAME).is_file():
            results_there = read_results(place)
            return (
                trained_on(place, results_there)
                if results_there.get("prompts_from") is None
                else None
            )
    return None


def of_checkpoint(checkpoint: dict, folder: Path) -> dict | None:
    """The record of the prompts in a checkpoint of ``folder``; None: it is not known.

    Checkpoints of earlier versions have no record; the results of their run may have one.
    """
    if (record := checkpoint.get("trained_on")) and not trained_on_faults(record):
        return record
    for place in (folder, folder.parent):
        if (place / RESULTS_NAME).is_file():
            results = read_results(place)
            return trained_on(place, results) if results.get("prompts_from") is None else None
    return None


def _places(folder: Path, config: dict, model_dir: str) -> list[Path]:
    """Where the run that trained the prompts may be.

    It is at ``model_dir``, or was moved together with ``folder``.
    """
    if not model_dir:
        return []
    named = Path(model_dir)
    places = [named]
    before, now = Path(config.get("OUTPUT_DIR") or "").parts, folder.parts
    while before and now and before[-1] == now[-1]:
        before, now = before[:-1], now[:-1]
    if named.parts[: len(before)] == before:
        places.append(Path(*now, *named.parts[len(before) :]))
    # model_dir may be the folder of the prompts, inside the run's folder
    return [place for path in places for place in (path, path.parent)]
