"""``apd.load`` reads what our peers' projects wrote, with the trainer named."""

import peers
import pytest
import torch

import apd
from apd.errors import UserError

CASES = {
    "CoOp": (peers.coop, {}),
    "CoOp, middle": (peers.coop, {"TRAINER.COOP.CLASS_TOKEN_POSITION": "middle"}),
    "CoOp, CSC": (lambda weights: peers.coop(weights, classes=(4,)), {}),
    "APT": (peers.coop, {}),
    "AdvPT": (peers.coop, {}),
    "VPT": (peers.vpt, {}),
    "AdvVPT": (peers.vpt, {}),
    "IVLP": (peers.ivlp, {}),
    "AdvIVLP": (peers.ivlp, {}),
    "MaPLe": (peers.maple, {}),
    "AdvMaPLe": (peers.maple, {}),
    "FAP": (peers.fap, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_as_the_trainer_reads_it(case, weights, build, tiny, tmp_path):
    """Sizes and depths are read from the file; the run's own config states them to the trainer."""
    write, options = CASES[case]
    method = case.split(",")[0]
    folder = peers.save(tmp_path, *write(weights))
    given = {"TRAINER.COOP.CSC": "CSC" in case, **options}
    trainer = build(method, None, *(part for pair in given.items() for part in pair))
    trainer.load_model(str(folder))
    images = torch.rand(3, 3, 32, 32)
    model = apd.load(
        folder, trainer=method, backbone=tiny.clip, classes=peers.NAMES, options=options
    )
    with torch.no_grad():
        assert torch.equal(model(images), trainer.image_logits()(images))
    (file,) = folder.glob("*/model.pth.tar-5")
    again = apd.load(file, trainer=method, backbone=tiny.clip, classes=peers.NAMES, options=options)
    assert torch.equal(again(images), model(images))


def test_our_own_checkpoint_says_all(run, tmp_path):
    """A run that was not finished has no results.json."""
    options = ("TRAINER.MAPLE.CTX_INIT", "an image of", "AT.TEST.EPS", None)
    assert run("MaPLe", tmp_path / "run", *options).code == 0
    images, expected = torch.rand(3, 3, 32, 32), apd.load(tmp_path / "run")
    (tmp_path / "run" / "results.json").unlink()
    model = apd.load(tmp_path / "run")
    assert torch.equal(model(images), expected(images))
    assert model.results == {} and model.class_names == expected.class_names


def test_what_is_missing_is_told_one_by_one(weights, tiny, tmp_path):
    folder = peers.save(tmp_path, *peers.maple(weights))
    given = {}
    for key, value, said in (
        ("trainer", "MaPLe", 'does not say its trainer: give it, as in trainer="MaPLe"'),
        ("backbone", tiny.clip, "does not say its CLIP"),
        ("classes", peers.NAMES, "does not say its class names"),
    ):
        with pytest.raises(UserError, match=said):
            apd.load(folder, **given)
        given[key] = value
    for change, said in (
        ({"trainer": "CoOp"}, "use --trainer MaPLe"),
        ({"trainer": "MaPle"}, "there are MaPLe"),
        ({"backbone": tiny.wide}, "set MODEL.BACKBONE.NAME"),
        ({"options": {"TRAINER.MAPLE.CTX": 1}}, "options: there is no key TRAINER.MAPLE.CTX"),
        ({"epoch": 7}, "model.pth.tar-7"),
    ):
        with pytest.raises(UserError, match=said):
            apd.load(folder, **{**given, **change})
    with pytest.raises(UserError, match="there is no"):
        apd.load(tmp_path / "none")
