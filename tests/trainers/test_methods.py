"""Every method trains its prompts and nothing else, and writes down what it was and found."""

import copy
import csv
import math
import re
from types import SimpleNamespace

import pytest
import torch

from apd.evaluate import fingerprint
from apd.host import HOST, HOST_VERSION
from apd.results import read_results
from apd.training.base import PromptTrainer

TEXT, VISION = 64, 128  # widths of the tiny CLIP
SHALLOW = 4 * TEXT  # CoOp: 4 vectors
VISUAL = 2 * 2 * VISION  # 2 vectors in 2 layers
BIMODAL = 2 * 2 * TEXT + VISUAL
REVERSED = 2 * TEXT + 2 * VISION + 2 * TEXT * VISION + TEXT + VISION
# vectors; in the second layer 5 experts, a base, a router and two scales
MIXED = sum(2 * d + 6 * 2 * d + 5 * d + 5 + 2 for d in (TEXT, VISION))
COUPLED = 2 * 2 * TEXT + 2 * (TEXT * VISION + VISION)  # and a projection for each layer

METHODS = {  # modality of the prompts, how many numbers are learned
    "ZeroshotCLIP": ("none", 0),
    "ZeroshotCLIP2": ("none", 0),
    "CoOp": ("text", SHALLOW),
    "VPT": ("visual", VISUAL),
    "IVLP": ("text + visual", BIMODAL),
    "MaPLe": ("text + visual", COUPLED),
    "APT": ("text", SHALLOW),
    "AdvPT": ("text", SHALLOW),
    "AdvVPT": ("visual", VISUAL),
    "AdvIVLP": ("text + visual", BIMODAL),
    "AdvMaPLe": ("text + visual", COUPLED),
    "FAP": ("text + visual", REVERSED),
    "CBAFAPT": ("text + visual", REVERSED),
    "MMoP": ("text + visual", MIXED),
    "APD": ("text + visual", 2 * BIMODAL),  # its online teacher has as many
}
TRAINED = [name for name in METHODS if "Zeroshot" not in name]
THREAT = {
    "norm": "linf",
    "eps": 1.0,
    "alpha": 0.5,
    "steps": 3,
    "restarts": 1,
    "random_start": True,
    "loss": "ce",
    "units": "1/255",
    "source": "white-box",
    "precision": "fp32",
    "seed": 1,
    "last_iterate": False,
}


@pytest.fixture(scope="module")
def finished(run, tmp_path_factory):
    """Function: a finished run of a method, made once: its folder, trainer and log, and copies
    of CLIP and of the prompts as they were before training."""
    runs = {}

    def finished(method):
        if method not in runs:
            folder, before = tmp_path_factory.mktemp(method), SimpleNamespace()
            before_train = PromptTrainer.before_train

            def remember(trainer):
                before.clip = copy.deepcopy(trainer.clip_model.state_dict())
                before.prompts = copy.deepcopy(_prompts(trainer))
                before_train(trainer)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(PromptTrainer, "before_train", remember)
                result = run(method, folder)
            assert (result.code, result.err) == (0, "")
            log = (folder / "log.txt").read_text()
            runs[method] = SimpleNamespace(
                folder=folder, log=log, before=before, trainer=result.trainer
            )
        return runs[method]

    return finished


def _prompts(trainer):
    return {
        f"{name}.{key}": value
        for name, model in trainer._models.items()
        for key, value in model.state_dict().items()
    }


@pytest.mark.parametrize("method", METHODS)
def test_results_say_what_was_run(finished, method):
    results = read_results(finished(method).folder)
    modality, parameters = METHODS[method]
    wanted = {
        "complete": True,
        "method": method,
        "modality": modality,
        "trainable_parameters": parameters,
        "dataset": "shapes",
        "classes": 4,
        "subsample": "all",
        "shots": 2,
        "seed": 1,
        "host": f"{HOST} {HOST_VERSION}",
        "prompts_from": None,
    }
    assert {key: results[key] for key in wanted} == wanted
    assert results["backbone"].endswith("clip.pt")
    config = results["config"]
    assert config["TRAINER"]["NAME"] == method
    assert config["AT"]["TEST"]["EPS"] == 1.0 and config["OPTIM"]["MAX_EPOCH"] == 2
    assert results["seconds"] > results["train_seconds"] >= 0
    assert bool(results["train_seconds"]) == (method in TRAINED)
    assert results["fingerprint"] == fingerprint(finished(method).trainer.model)
    assert results["argv"][results["argv"].index("--trainer") + 1] == method
    assert 2**27 < results["peak_memory"] < 2**36  # PyTorch alone has 128 MiB


@pytest.mark.parametrize("method", TRAINED)
def test_history_has_a_row_an_epoch_with_the_means_of_what_is_logged(finished, method):
    run = finished(method)
    with open(run.folder / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert len(rows) == read_results(run.folder)["epochs"]
    assert float(rows[0]["lr"]) == 0.001  # warm-up
    assert float(rows[1]["lr"]) == 0.02
    assert math.isclose(
        sum(float(row["seconds"]) for row in rows),
        read_results(run.folder)["train_seconds"],
        rel_tol=0 if method != "AdvPT" else 1,  # its attack comes before the first epoch
        abs_tol=1e-6,
    )
    logged = re.findall(r"epoch \[(\d)/2\] .*? loss [\d.]+ \(([\d.]+)\)", run.log)
    last = dict(logged)  # the log's running means, the last of each epoch
    assert [f"{float(row['loss']):.4f}" for row in rows] == [last["1"], last["2"]]


def test_tensorboard_has_the_scalars_that_dassl_writes(finished):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = events.EventAccumulator(str(finished("APD").folder / "tensorboard")).Reload()
    names = {"train/loss", "train/student", "train/teacher", "train/lr", "test/accuracy"}
    assert names | {"test/pgd-3"} <= set(found.Tags()["scalars"])
    assert len(found.Scalars("train/loss")) == 4  # steps


@pytest.mark.parametrize("method", METHODS)
def test_results_count_clean_and_robust_under_a_named_threat(finished, method):
    run = finished(method)
    clean, robust = read_results(run.folder)["evaluations"]
    assert (clean["attack"], clean["threat_model"]) == ("clean", None)
    assert (robust["attack"], robust["threat_model"]) == ("pgd-3", THREAT)
    assert clean["total"] == robust["total"] == 20
    assert clean["correct"] >= robust["correct"]
    # the deployed model, asked plainly
    with torch.no_grad():
        right = [
            (run.trainer.model(batch["img"]).argmax(1) == batch["label"]).sum().item()
            for batch in run.trainer.test_loader
        ]
    assert clean["correct"] == sum(right) > 0
    for record in (clean, robust):
        assert record["accuracy"] == pytest.approx(100 * record["correct"] / 20)
        assert record["seconds"] > 0


@pytest.mark.parametrize("method", TRAINED)
def test_every_prompt_is_trained(finished, method):
    run = finished(method)
    after = _prompts(run.trainer)
    assert set(after) == set(run.before.prompts) and after
    unchanged = [name for name in after if torch.equal(after[name], run.before.prompts[name])]
    assert unchanged == []


@pytest.mark.parametrize("method", METHODS)
def test_clip_is_not(finished, method):
    run = finished(method)
    weights = run.trainer.clip_model
    assert all(p.grad is None and not p.requires_grad for p in weights.parameters())
    assert not weights.training
    for name, value in weights.state_dict().items():
        assert torch.equal(value, run.before.clip[name]), name


@pytest.mark.parametrize("method", METHODS)
def test_the_folder_has_dassls_layout(finished, method):
    run = finished(method)
    assert (run.folder / "log.txt").exists()
    names = ["prompt_learner", "teacher"] if method == "APD" else ["prompt_learner"]
    for name in names if method in TRAINED else []:
        checkpoint = torch.load(run.folder / name / "model.pth.tar-2", weights_only=True)
        assert (run.folder / name / "checkpoint").read_text().strip() == "model.pth.tar-2"
        assert checkpoint["epoch"] == 2 and checkpoint["method"] == method
        learned = run.trainer._models[name].state_dict()
        assert checkpoint["state_dict"].keys() == learned.keys()
        assert all(torch.equal(value, learned[k]) for k, value in checkpoint["state_dict"].items())


def test_the_log_begins_with_the_config_and_ends_with_the_result(finished):
    log = finished("APT").log
    lines = [
        "Setting fixed seed: 1",
        "AT_LOSS_TYPE: adv_full",
        f"host: {HOST} {HOST_VERSION}",
        "epoch [1/2]",
        "epoch [2/2]",
        "* accuracy:",
        "* robust accuracy:",
    ]
    places = [log.find(line) for line in lines]
    assert -1 not in places and places == sorted(places)


def test_zero_shot_is_evaluated_without_training(finished):
    run = finished("ZeroshotCLIP")
    assert "epoch [" not in run.log
    assert not (run.folder / "resume.pth.tar").exists()
