"""Runs as a user starts them: kept when finished, evaluated again, evaluated elsewhere."""

import json
import shutil

import pytest
import torch
from PIL import Image

from apd.clip import backbone_sha256, build_prompted_clip, load_clip, weights_sha256
from apd.results import read_results
from apd.tables.command import main as table
from apd.training import base


def counts(folder):
    return [(e["attack"], e["correct"], e["total"]) for e in read_results(folder)["evaluations"]]


def of(folder, *more):
    return ("--eval-only", "--model-dir", str(folder), *more)


# -- a finished run --------------------------------------------------------------------------------


def test_a_finished_run_is_kept(run, runs, contents, monkeypatch):
    before = contents(runs.maple)
    result = run("MaPLe", runs.maple)
    assert (result.code, result.err, result.trainer) == (0, "", None)  # not even built
    assert "is finished: kept as it is" in result.out
    assert contents(runs.maple) == before


def test_a_finished_run_is_kept_when_only_harmless_keys_differ(run, runs, contents):
    before = contents(runs.maple)
    result = run("MaPLe", runs.maple, "TRAIN.PRINT_FREQ", 1, "TRAIN.CHECKPOINT_FREQ", 1)
    assert (result.code, result.trainer) == (0, None)
    assert contents(runs.maple) == before


def test_the_same_command_gives_the_same_run(run, runs, tmp_path):
    assert run("MaPLe", tmp_path).code == 0
    first, second = (
        torch.load(folder / "prompt_learner" / "model.pth.tar-2", weights_only=True)["state_dict"]
        for folder in (runs.maple, tmp_path)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert counts(runs.maple) == counts(tmp_path)


@pytest.mark.parametrize("transforms", [[], ["random_flip"]])
def test_images_in_memory_give_the_same_run(run, tmp_path, transforms, monkeypatch):
    read, reads = Image.open, []
    monkeypatch.setattr(Image, "open", lambda path, *_: reads.append(path) or read(path))
    options = ("INPUT.TRANSFORMS", transforms, "OPTIM.MAX_EPOCH", 3)
    states, numbers = [], []
    for name, kept in (("again", False), ("kept", True)):
        reads.clear()
        out = tmp_path / name
        assert run("AdvIVLP", out, *options, "DATALOADER.IN_MEMORY", kept).code == 0
        states.append(torch.load(out / "prompt_learner" / "model.pth.tar-3", weights_only=True))
        numbers.append(len(reads))
    first, second = (state["state_dict"] for state in states)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert counts(tmp_path / "again") == counts(tmp_path / "kept")
    train, test = 8, 20
    assert numbers[0] >= 3 * train + 2 * test
    assert numbers[1] == (3 if transforms else 1) * train + test


def test_a_run_of_an_earlier_version_has_new_keys_at_their_defaults(run, runs, tmp_path, contents):
    shutil.copytree(runs.coop, tmp_path / "old")
    path = tmp_path / "old" / "results.json"
    results = json.loads(path.read_text())
    del results["config"]["DATASET"]["VAL_SHOTS"], results["config"]["TRAINER"]["APD"]["TAU"]
    path.write_text(json.dumps(results))
    before = contents(tmp_path / "old")
    base = ("DATASET.SUBSAMPLE_CLASSES", "base")
    assert "is finished" in run("CoOp", tmp_path / "old", *base).out
    assert run("CoOp", tmp_path / "old", *base, "DATASET.VAL_SHOTS", 3).code == 2
    assert contents(tmp_path / "old") == before


def test_another_seed_gives_another_run(run, runs, tmp_path):
    assert run("MaPLe", tmp_path, flags=("--seed", "2")).code == 0
    first, second = (
        torch.load(folder / "prompt_learner" / "model.pth.tar-2", weights_only=True)["state_dict"]
        for folder in (runs.maple, tmp_path)
    )
    assert not any(torch.equal(first[name], second[name]) for name in first)


# -- what a run says of its prompts ----------------------------------------------------------------


@pytest.mark.parametrize("name", ["maple", "coop", "csc", "apd"])
def test_results_and_prompts_classify_without_the_data_set(build, tiny, runs, name):
    folder = getattr(runs, name)
    results = read_results(folder)
    clip_model = load_clip(tiny.clip)
    assert results["backbone_sha256"] == backbone_sha256(clip_model)
    model = build_prompted_clip(clip_model, results["class_names"], **results["prompts"])
    saved = torch.load(folder / "prompt_learner" / "model.pth.tar-2", weights_only=True)
    model.prompt_learner.load_state_dict(saved["state_dict"])
    assert results["prompts_sha256"] == weights_sha256(model.prompt_learner)
    assert results["class_names"] == saved["classnames"] and results["classes"] == len(
        results["class_names"]
    )
    assert results["input"] == {
        "size": [32, 32],
        "interpolation": "bicubic",
        "mean": [0.48145466, 0.4578275, 0.40821073],
        "std": [0.26862954, 0.26130258, 0.27577711],
    }
    dataset, config = results["dataset"], results["config"]
    options = ("DATASET.SUBSAMPLE_CLASSES", results["subsample"])
    if name == "csc":
        options += ("TRAINER.COOP.CSC", True)
    trainer = build(results["method"], None, *options)
    trainer.load_model(str(folder))
    images = torch.rand(3, 3, 32, 32)
    assert torch.equal(model.classifier()(images), trainer.image_logits()(images))
    assert (dataset, config["DATASET"]["NAME"]) == ("shapes", "Folder")


def test_results_and_checkpoints_say_what_prompts_were_trained_on(run, runs, tmp_path):
    record = read_results(runs.coop)["trained_on"]
    apart = ("keys", "backbone_sha256", "settings")
    assert {key: value for key, value in record.items() if key not in apart} == {
        "method": "CoOp",
        "dataset": "shapes",
        "subsample": "base",
        "shots": 2,
        "seed": 1,
    }
    assert record["backbone_sha256"] == read_results(runs.coop)["backbone_sha256"]
    keys = record["keys"]
    assert keys["TRAINER.COOP.CLASS_TOKEN_POSITION"] == "end" and keys["INPUT.SIZE"] == [32, 32]
    assert {key.split(".")[1] for key in keys if key.startswith("TRAINER.")} == {"COOP"}
    saved = torch.load(runs.coop / "prompt_learner" / "model.pth.tar-2", weights_only=True)
    assert saved["trained_on"] == record
    # an evaluation has the record of what it evaluates, whatever it is asked of itself
    new = ("DATASET.SUBSAMPLE_CLASSES", "new", "DATASET.NUM_SHOTS", 1)
    assert run("CoOp", tmp_path, *new, flags=of(runs.coop, "--seed", "3")).code == 0
    evaluated = read_results(tmp_path)
    assert evaluated["trained_on"] == record and evaluated["subsample"] == "new"
    assert evaluated["prompts_sha256"] == read_results(runs.coop)["prompts_sha256"]


def test_a_table_of_new_classes_takes_prompts_of_the_base_run_only(run, runs, tmp_path, capsys):
    new, folders = ("DATASET.SUBSAMPLE_CLASSES", "new"), [str(runs.coop), str(tmp_path)]
    assert run("CoOp", tmp_path / "trained", *new).code == 0
    assert table([*folders, "--table", "base-to-new"]) == 2
    assert "its prompts were trained on shapes, new classes" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "trained")
    assert run("CoOp", tmp_path / "tested", *new, flags=of(runs.coop)).code == 0
    assert table([*folders, "--table", "base-to-new"]) == 0
    assert "new clean (%)" in capsys.readouterr().out


def test_zero_shot_was_trained_on_nothing(run, tmp_path):
    assert run("ZeroshotCLIP", tmp_path, "TRAINER.PROMPT.TEMPLATES", ["a {}", "the {}."]).code == 0
    results = read_results(tmp_path)
    assert results["trained_on"] is None and results["prompts_sha256"] is None
    assert results["prompts"] == {"templates": ["a {}", "the {}."]}


# -- evaluation only -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, method, options",
    [
        ("maple", "MaPLe", ()),
        ("coop", "CoOp", ("DATASET.SUBSAMPLE_CLASSES", "base")),
        ("csc", "CoOp", ("DATASET.SUBSAMPLE_CLASSES", "base", "TRAINER.COOP.CSC", True)),
        ("apd", "APD", ()),
    ],
)
def test_eval_only_reproduces_the_run(run, runs, tmp_path, name, method, options):
    folder = getattr(runs, name)
    result = run(method, tmp_path, *options, flags=of(folder))
    assert (result.code, result.err) == (0, "")
    assert counts(tmp_path) == counts(folder)
    results = read_results(tmp_path)
    assert results["prompts_from"] == {"model_dir": str(folder), "epoch": None}
    assert results["train_seconds"] == 0
    original = read_results(folder)
    for key in ("method", "modality", "trainable_parameters", "classes", "shots"):
        assert results[key] == original[key]


def test_eval_only_of_an_earlier_epoch(run, runs, tmp_path):
    result = run("APD", tmp_path, flags=of(runs.apd, "--load-epoch", "1"))
    assert result.code == 0
    assert read_results(tmp_path)["prompts_from"]["epoch"] == 1
    first = torch.load(runs.apd / "prompt_learner" / "model.pth.tar-1", weights_only=True)
    loaded = result.trainer.model.prompt_learner.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in first["state_dict"].items())


def test_eval_only_under_another_attack(run, runs, tmp_path):
    result = run("MaPLe", tmp_path, "AT.TEST.STEPS", 1, "AT.TEST.EPS", 0.5, flags=of(runs.maple))
    assert (result.code, result.err) == (0, "")
    clean, robust = read_results(tmp_path)["evaluations"]
    assert clean["correct"] == read_results(runs.maple)["evaluations"][0]["correct"]
    assert (robust["attack"], robust["threat_model"]["eps"]) == ("pgd-1", 0.5)


def test_eval_only_without_a_folder_writes_nothing(run, runs, tmp_path, contents, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = contents(runs.root)
    result = run("MaPLe", None, flags=of(runs.maple))
    assert (result.code, result.err) == (0, "")
    assert "* accuracy:" in result.out and "* robust accuracy:" in result.out
    assert list(tmp_path.iterdir()) == []
    assert contents(runs.root) == before


def test_a_finished_evaluation_is_kept(run, runs, tmp_path, contents):
    run("MaPLe", tmp_path, flags=of(runs.maple))
    before = contents(tmp_path)
    result = run("MaPLe", tmp_path, flags=of(runs.maple))
    assert (result.code, result.trainer) == (0, None)
    assert contents(tmp_path) == before


def test_base_trained_prompts_are_evaluated_on_new_classes(run, runs, tmp_path):
    new = ("DATASET.SUBSAMPLE_CLASSES", "new")
    result = run("CoOp", tmp_path, *new, flags=of(runs.coop))
    assert (result.code, result.err) == (0, "")
    assert "trained on other classes" in result.out
    results = read_results(tmp_path)
    assert (results["classes"], results["subsample"]) == (2, "new")
    assert [e["total"] for e in results["evaluations"]] == [10, 10]
    assert read_results(runs.coop)["classes"] == 2
    base, new = (
        torch.load(runs.coop / "prompt_learner" / "model.pth.tar-2", weights_only=True),
        result.trainer.model.prompt_learner.state_dict(),
    )
    assert all(torch.equal(new[name], value) for name, value in base["state_dict"].items())


def test_zero_shot_is_evaluated_without_a_run(run, tmp_path):
    """As CoOp's zeroshot.sh does it."""
    result = run("ZeroshotCLIP", tmp_path / "eval", flags=("--eval-only",))
    assert (result.code, result.err) == (0, "")
    assert run("ZeroshotCLIP", tmp_path / "run").code == 0
    assert counts(tmp_path / "eval") == counts(tmp_path / "run")


def test_no_train_builds_and_writes_nothing(run, tmp_path):
    result = run("APD", tmp_path / "out", flags=("--no-train",))
    assert (result.code, result.err) == (0, "")
    assert result.trainer is not None and not (tmp_path / "out").exists()


# -- shots -----------------------------------------------------------------------------------------


def test_more_shots_than_there_are_images(run, tmp_path):
    result = run("CoOp", tmp_path, "DATASET.NUM_SHOTS", 16, "OPTIM.MAX_EPOCH", 1)
    assert (result.code, result.err) == (0, "")
    classes = "circle (6), square (6), star (6), triangle (6)"
    warning = f"fewer than 16 training images, all are used: {classes}"
    assert warning in result.out
    assert warning in (tmp_path / "log.txt").read_text()
    assert len(result.trainer.train_loader_x.dataset) == 24
    assert read_results(tmp_path)["shots"] == 16


# -- a loss that is not finite ---------------------------------------------------------------------


def test_a_non_finite_loss_stops_the_run_and_keeps_the_last_good_epoch(run, tmp_path):
    from apd.host import load_checkpoint

    result = run("MaPLe", tmp_path, "OPTIM.LR", 1e30, "OPTIM.MAX_EPOCH", 3)
    assert result.code == 1
    (line,) = result.err.splitlines()
    parts = ["error: the loss is nan at epoch 2, batch 2 of 2", "learning rate 1e+30", "likely"]
    parts += ["OPTIM.LR", "The checkpoint of epoch 1 is kept", str(tmp_path)]
    assert [part for part in parts if part not in line] == []
    state = load_checkpoint(tmp_path / "resume.pth.tar")
    assert state["epoch"] == 1
    for model in state["models"].values():
        assert all(torch.isfinite(value).all() for value in model.values())
    assert not (tmp_path / "results.json").exists()
    # and the run goes on from there, to the same end
    again = run("MaPLe", tmp_path, "OPTIM.LR", 1e30, "OPTIM.MAX_EPOCH", 3)
    assert again.code == 1 and "epoch 2, batch 2" in again.err


@pytest.mark.parametrize("method", ["APT", "APD"])
def test_a_non_finite_attack_is_not_taken_for_an_image(run, tmp_path, method, monkeypatch):
    """A poisoned weight shows in the loss, though the attack clamps its images."""
    from apd.training.base import PromptTrainer

    build = PromptTrainer.build_model

    def poisoned(self):
        build(self)
        with torch.no_grad():
            self.model.prompt_learner.text[0][0, 0] = float("nan")

    monkeypatch.setattr(PromptTrainer, "build_model", poisoned)
    result = run(method, tmp_path)
    assert result.code == 1
    (line,) = result.err.splitlines()
    assert "the loss is nan at epoch 1, batch 1 of 2" in line
    assert "epoch 0 is kept" not in line  # there is none


def test_prompts_that_are_not_finite_are_refused(run, runs, copy_of, tmp_path):
    folder = copy_of(runs.maple)
    path = folder / "prompt_learner" / "model.pth.tar-2"
    checkpoint = torch.load(path, weights_only=True)
    next(iter(checkpoint["state_dict"].values()))[0, 0] = float("nan")
    torch.save(checkpoint, path)
    result = run("MaPLe", tmp_path / "out", flags=of(folder))
    assert result.code == 2 and result.err.count("\n") == 1
    assert f"{path} has NaN or infinite values" in result.err
    assert not (tmp_path / "out" / "results.json").exists()


# -- interrupted, and from elsewhere ---------------------------------------------------------------


def test_interrupting_says_how_to_continue(run, tmp_path, monkeypatch):
    from apd.training.base import PromptTrainer

    def interrupted(self, batch):
        raise KeyboardInterrupt

    monkeypatch.setattr(PromptTrainer, "forward_backward", interrupted)
    result = run("CoOp", tmp_path)
    assert result.code == 130
    assert result.err == "interrupted: the same command continues this run\n"


def test_an_impossible_result_is_kept_and_told(run, tmp_path, monkeypatch):
    def evaluate(*args, **options):
        records = real(*args, **options)
        if len(records) == 1:  # zero-shot CLIP's
            return records
        records[1]["flags"]["robust-above-clean"] = "more than on clean images, 10.0 %"
        return records

    real = base.evaluate
    monkeypatch.setattr(base, "evaluate", evaluate)
    monkeypatch.setattr(base, "add_flags", lambda records: None)  # the ones above stay
    result = run("CoOp", tmp_path)
    assert result.code == 1
    assert result.err == ("error: pgd-3 is robust-above-clean: more than on clean images, 10.0 %\n")
    assert "robust-above-clean" in read_results(tmp_path)["evaluations"][1]["flags"]
