"""``apd.load``: the classifier of a run, without its data set."""

import json
import shutil
import subprocess
import sys
import warnings

import pytest
import torch

import apd
from apd.errors import UserError
from apd.evaluate.run import Run, SavedRun
from apd.methods import METHODS
from apd.results import read_results


def test_pytorch_is_imported_at_first_use():
    code = """
import sys
import apd
assert not {"torch", "numpy", "matplotlib"} & sys.modules.keys(), "import apd"
assert set(apd.__all__) <= set(dir(apd)) and "torch" not in sys.modules, "dir(apd)"
assert callable(apd.load) and "torch" in sys.modules
try:
    apd.lod
except AttributeError as error:
    assert "lod" in str(error)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_logits_equal_the_runs_own_evaluation_to_the_bit(trained, images, method):
    folder, trainer = trained(method)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # that it is another model than the one measured
        model = apd.load(folder)
    with torch.no_grad():
        expected = trainer.image_logits()(images)
        assert torch.equal(model(images), expected)
        assert torch.equal(Run(SavedRun(folder, read_results(folder))).logits(images), expected)
    assert model.class_names == trainer.dm.dataset.classnames
    assert model.results["method"] == method == model.description.method
    assert not any(p.requires_grad for p in model.parameters()) and not model.training


def test_loading_draws_no_random_numbers(folder):
    before = torch.get_rng_state()
    apd.load(folder)
    assert torch.equal(torch.get_rng_state(), before)


def test_threat_models(trained):
    threat = {"norm": "linf", "eps": 1.0, "restarts": 1, "random_start": True, "loss": "ce"}
    train = {**threat, "alpha": 0.7, "steps": 2, "units": "1/255"}
    test = {**threat, "alpha": 0.5, "steps": 1, "units": "1/255"}
    assert apd.load(trained("AdvIVLP")[0]).threat_model == {"train": train, "test": test}
    assert apd.load(trained("IVLP")[0]).threat_model == {"train": None, "test": test}


def changed(folder, tmp_path, **fields):
    """A copy of a run, other fields in its results.json; None: without them."""
    copy = shutil.copytree(folder, tmp_path / f"copy{len(list(tmp_path.iterdir()))}")
    results = json.loads((copy / "results.json").read_text()) | fields
    left = {key: value for key, value in results.items() if value is not None}
    (copy / "results.json").write_text(json.dumps(left))
    return copy


def test_runs_of_older_versions(trained, tmp_path, images):
    """They do not say prompts, hashes or class names: their config and checkpoint do."""
    older = dict.fromkeys(("class_names", "prompts", "input", "backbone_sha256", "prompts_sha256"))
    folder, _ = trained("AdvIVLP")
    model = apd.load(changed(folder, tmp_path, **older))
    assert torch.equal(model(images), apd.load(folder)(images))
    assert model.class_names == apd.load(folder).class_names
    zero_shot = changed(trained("ZeroshotCLIP")[0], tmp_path, **older)
    with pytest.raises(UserError, match=r"does not say its class names: give them as classes="):
        apd.load(zero_shot)
    names = ["circle", "square", "star", "triangle"]
    expected = trained("ZeroshotCLIP")[1].image_logits()(images)
    assert torch.equal(apd.load(zero_shot, classes=names)(images), expected)


def test_another_clip_under_the_same_name_is_refused(folder, tiny, tmp_path):
    weights = torch.load(tiny.clip, weights_only=True)
    weights["visual.proj"][0, 0] += 0.01
    torch.save(weights, tmp_path / "clip.pt")
    with pytest.raises(UserError, match="clip.pt is another CLIP.*SHA-256.*backbone="):
        apd.load(folder, backbone=str(tmp_path / "clip.pt"))
    shutil.copy(tiny.clip, tmp_path / "moved.pt")
    apd.load(folder, backbone=str(tmp_path / "moved.pt"))


def test_other_prompts_than_those_measured_are_refused(folder, tmp_path, images):
    copy = changed(folder, tmp_path)
    path = copy / "prompt_learner" / "model.pth.tar-1"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["state_dict"]["text.0"] += 0.1
    torch.save(checkpoint, path)
    with pytest.raises(UserError, match="prompts.*results.json.*epoch="):
        apd.load(copy)
    model = apd.load(copy, epoch=1)
    assert model.results == {} and not torch.equal(model(images), apd.load(folder)(images))


def test_a_reading_of_class_names_that_has_changed_is_told(folder, tmp_path):
    with pytest.warns(UserWarning, match="not the model that results.json is about"):
        apd.load(changed(folder, tmp_path, fingerprint="0" * 32))


def test_damaged_files_are_one_line(folder, tmp_path):
    copy = changed(folder, tmp_path)
    (copy / "prompt_learner" / "model.pth.tar-1").write_bytes(b"no")
    with pytest.raises(UserError, match="cannot read checkpoint"):
        apd.load(copy)
    (copy / "results.json").write_text("{")
    with pytest.raises(UserError, match="results.json is damaged"):
        apd.load(copy)


def test_an_empty_list_of_classes_is_not_the_checkpoints_own(folder):
    with pytest.raises(UserError, match="class names are"):
        apd.load(folder / "prompt_learner", classes=[])


def test_a_teachers_prompts_are_not_taken_for_the_runs(folder, tmp_path):
    shutil.copytree(folder / "prompt_learner", tmp_path / "teacher")
    with pytest.raises(UserError, match="no checkpoint"):
        apd.load(tmp_path)


def test_prompts_of_another_run(run, trained, tmp_path, images):
    """Base-to-new: the run with the results is another one than that with the prompts."""
    folder, _ = trained("AdvIVLP", "DATASET.SUBSAMPLE_CLASSES", "base")
    flags = ("--eval-only", "--model-dir", str(folder))
    new = ("DATASET.SUBSAMPLE_CLASSES", "new", "AT.TEST.STEPS", 1)
    result = run("AdvIVLP", tmp_path / "new", *new, flags=flags)
    assert result.code == 0
    model = apd.load(tmp_path / "new")
    assert model.class_names == ["star", "triangle"]
    assert torch.equal(model(images), result.trainer.image_logits()(images))
    assert torch.equal(apd.load(folder).classes(model.class_names)(images), model(images))


@pytest.mark.parametrize("defence", [name for name, method in METHODS.items() if method.defence])
def test_a_defence_that_changes_the_model_when_it_classifies_is_refused(folder, tmp_path, defence):
    with pytest.raises(UserError, match=f"{defence} changes the model"):
        apd.load(changed(folder, tmp_path, method=defence))
