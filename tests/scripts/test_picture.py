"""scripts/picture.py, the picture of the README."""

import runpy
import tarfile
from pathlib import Path

import pytest
import torch

import apd
from apd.attacks import ThreatModel, find_attack
from apd.results.runs import load_runs
from apd.show.attack import attack_all

ROOT = Path(__file__).parents[2]
MODULE = runpy.run_path(str(ROOT / "scripts" / "picture.py"))


@pytest.fixture
def study(tmp_path):
    """Runs of the study, without their verdicts."""
    with tarfile.open(ROOT / "docs" / "study" / "runs.tar.gz") as archive:
        for member in archive:
            if member.name.startswith("photos_") and member.name.endswith("results.json"):
                path = tmp_path / member.name
                path.parent.mkdir(parents=True)
                path.write_bytes(archive.extractfile(member).read())
    return load_runs(sorted(tmp_path.glob("photos_*/*/mini_photo_16shots")))


def test_the_picture_shows_the_chosen_images_of_both_runs_and_all_methods_of_the_study(study):
    names = ["zero", "one", "two"]
    models = [apd.zero_shot("mini", names), apd.zero_shot("mini", names, "the digit {}")]
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    attack = find_attack("fgsm", ThreatModel("linf", 4, 4, 1))
    gallery = attack_all(
        models, ["CoOp", "APD"], attack, images, names, captions=names, title="an attack"
    )
    chosen = MODULE["rows_of"](gallery, [2, 0])
    assert chosen.captions == ["two", "zero"] and torch.equal(chosen.clean, images[[2, 0]])
    figure = MODULE["draw"](chosen, study)
    *panels, scatter = figure.axes
    assert len(panels) == 2 * 3
    first = [panel.get_xlabel() for panel in panels[:3]]
    assert first[0] == "a two" and all(label.endswith("%") for label in first[1:])
    shown = {text.get_text() for text in scatter.texts}
    assert {"APD", "AdvIVLP", "AdvMaPLe", "AdvVPT", "APT", "AdvPT", "FAP", "IVLP"} <= shown
    assert scatter.get_title().startswith("average of 8 sets of photographs, PGD-100")
