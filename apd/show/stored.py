"""A gallery of a run's evaluation, drawn once and stored beside its verdicts."""

from __future__ import annotations

from pathlib import Path

from apd.errors import UserError
from apd.evaluate.examples import attack_of
from apd.evaluate.request import EvaluationRequest
from apd.evaluate.run import Run, SavedRun
from apd.figures.gallery import Gallery, draw
from apd.figures.style import save
from apd.models.sources import load
from apd.results.verdicts import Verdicts, gallery_path, read_verdicts, verdicts_path
from apd.results.words import attack_text, described
from apd.show.attack import attack_all
from apd.show.sample import sample_of_verdicts

COUNT = 4  # images of a gallery
SEED = 0  # draws them


def store_gallery(folder: Path, results: dict, key: str, root: str = "") -> None:
    """Draw the gallery of an evaluation, and store it beside its verdicts.

    Args:
        folder, results: of a run.
        key: of the evaluation.
        root: folder that holds the data sets; "": that of the run's config.

    Raises:
        UserError: the run's data or model are not on this machine, or its attack cannot be made
            again.
    """
    verdicts = read_verdicts(verdicts_path(folder, key))
    gallery = gallery_of_verdicts(Run(SavedRun(folder, results, root)), verdicts)
    save(draw(gallery), gallery_path(folder, key))


def gallery_of_verdicts(run: Run, verdicts: Verdicts) -> Gallery:
    """Images that the run classifies correctly, attacked again as in the evaluation.

    Raises:
        UserError: the evaluation was not white-box in fp32, or the run has another model now.
    """
    record = verdicts.record
    attack = attack_of(record)
    seed = record["threat_model"]["seed"]
    conditions = EvaluationRequest((attack,), seed=seed).conditions(attack)
    if conditions | record["threat_model"] != conditions:
        raise UserError(
            f"{described(record)} is not made again: only white-box attacks in fp32 are"
        )
    if run.fingerprint != verdicts.identity["model"]:
        raise UserError(f"{run.folder} has another model than when it was evaluated: evaluate anew")
    model = load(run.folder, device=run.trainer.device)
    sample = sample_of_verdicts(run, verdicts, COUNT, SEED)
    labels = [model.class_names[label] for label in sample.labels.tolist()]
    return attack_all(
        [model],
        [run.results["method"]],
        attack,
        sample.images,
        labels,
        captions=[f"{name}\nno. {place}" for name, place in zip(labels, sample.places.tolist())],
        title=(
            f"{run.name}: {attack_text(attack.name, attack.conditions)}. {len(labels)} images, "
            f"drawn with seed {SEED} so that both outcomes are shown; of all "
            f"{record['total']:,} images, {record['accuracy']:.1f} % withstand"
        ),
        places=sample.places,
        seed=seed,
    )
