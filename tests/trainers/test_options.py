"""Options that every method shares: precision, model selection, attacks, normalisation."""

import shutil
from functools import partial
from pathlib import Path

import pytest
import torch

from apd.attacks import ThreatModel
from apd.errors import NonFiniteLoss
from apd.results import read_results

MEAN = ("INPUT.PIXEL_MEAN", "[0.48, 0.46, 0.41]", "INPUT.PIXEL_STD", "[0.27, 0.26, 0.28]")
UNTESTED = ("TEST.NO_TEST", True)
IDENTITY = ("INPUT.PIXEL_MEAN", "[0.0, 0.0, 0.0]", "INPUT.PIXEL_STD", "[1.0, 1.0, 1.0]")


def state(folder, name="prompt_learner", file="model.pth.tar-2"):
    return torch.load(folder / name / file, weights_only=True)["state_dict"]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# -- precision -----------------------------------------------------------------------------------


SECTIONS = {"CoOp": "COOP", "MaPLe": "MAPLE", "APT": "COOP", "AdvPT": "ADV"}


@pytest.mark.parametrize(
    "method", ["CoOp", "AdvPT", "AdvVPT", "MaPLe", "FAP", "CBAFAPT", "MMoP", "APD"]
)
def test_half_precision_makes_nearly_the_same_step(build, run, tmp_path, monkeypatch, method):
    key = f"TRAINER.{SECTIONS.get(method, method)}.PREC"
    one = (
        "OPTIM.MAX_EPOCH",
        1,
        "OPTIM.WARMUP_EPOCH",
        0,
        "DATALOADER.TRAIN_X.BATCH_SIZE",
        8,
        *UNTESTED,
    )
    # a scale at which the first step is not skipped
    monkeypatch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=64.0))
    trainer = build(method, tmp_path / "start", *one)
    start = trainer.model.prompt_learner.state_dict()
    step = {}
    for name in ("fp32", "amp", "bf16"):
        result = run(method, tmp_path / name, key, name, *one)
        assert (result.code, result.err) == (0, "")
        found = state(tmp_path / name, file="model.pth.tar-1")
        assert {value.dtype for value in found.values()} == {torch.float32}
        step[name] = torch.cat([(found[k] - start[k]).flatten() for k in start])
    for precision, tolerance in (("amp", 0.1), ("bf16", 0.4)):
        error = (step[precision] - step["fp32"]).norm() / step["fp32"].norm()
        assert 0 < error < tolerance


@pytest.mark.parametrize(
    "method, precision", [("AdvMaPLe", "bf16"), ("CBAFAPT", "fp32"), ("APD", "fp32")]
)
def test_a_compiled_image_encoder_trains_alike(run, tmp_path, monkeypatch, method, precision):
    """By the part of the compiler that needs no C++: what is traced, and its gradients."""
    torch.compiler.reset()  # what is compiled is kept for a process, and only so much of it
    compile, used = torch.compile, []

    def traced(function, **more):
        run = compile(function, backend="aot_eager", **more)
        return lambda *args: used.append(args) or run(*args)

    monkeypatch.setattr(torch, "compile", traced)
    options = (
        f"TRAINER.{method}.PREC",
        precision,
        "OPTIM.MAX_EPOCH",
        1,
        "TEST.NO_TEST",
        True,
        "OPTIM.WARMUP_EPOCH",
        0,
    )
    results = [
        run(method, tmp_path / name, *options, "TRAINER.PROMPT.COMPILE", name == "compiled")
        for name in ("eager", "compiled")
    ]
    assert [(result.code, result.err) for result in results] == [(0, "")] * 2
    passes = len(used)
    eager, other = (result.trainer for result in results)
    assert passes and other.history[0]["loss"] == pytest.approx(eager.history[0]["loss"], rel=1e-4)
    other.test()
    assert len(used) == passes  # evaluation is never compiled


def test_a_compiler_that_fails_is_told_in_one_line(run, tmp_path, monkeypatch):
    from torch._dynamo.exc import TorchDynamoException

    def compile(function):
        def call(*args):
            raise TorchDynamoException("No working C++ compiler found\nin $CXX")

        return call

    monkeypatch.setattr(torch, "compile", compile)
    result = run("VPT", tmp_path / "run", "TRAINER.PROMPT.COMPILE", True)
    line = "error: TRAINER.PROMPT.COMPILE: No working C++ compiler found in $CXX\n"
    assert (result.code, result.err) == (2, line)


def test_fp16_is_read_as_amp(run, tmp_path):
    for precision in ("amp", "fp16"):
        run("AdvIVLP", tmp_path / precision, "TRAINER.AdvIVLP.PREC", precision, *UNTESTED)
    assert same(state(tmp_path / "amp"), state(tmp_path / "fp16"))


@pytest.mark.parametrize("key", ["TRAINER.APD.PREC", "AT.TRAIN.PREC"])
def test_unknown_precision_is_refused(run, tmp_path, key):
    result = run("APD", tmp_path / "out", key, "fp8")
    line = f"error: command line: {key} is fp8: use fp32, bf16, amp or fp16\n"
    assert (result.code, result.err) == (2, line)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "training, attack", [("fp32", "bf16"), ("amp", "fp32"), ("bf16", "amp"), ("bf16", "bf16")]
)
def test_attacks_have_a_precision_of_their_own(build, tmp_path, monkeypatch, training, attack):
    import apd.training.adversarial as adversarial

    trainer = build("AdvIVLP", tmp_path, "TRAINER.AdvIVLP.PREC", training, "AT.TRAIN.PREC", attack)
    seen, pgd, embeddings = [], adversarial.pgd, trainer.model.image_embeddings
    monkeypatch.setattr(
        trainer.model,
        "image_embeddings",
        lambda images: seen.append(embeddings(images)) or seen[-1],
    )
    inside = []

    def watched(*args, **more):
        result = pgd(*args, **more)
        inside.append(len(seen))
        assert result.dtype == torch.float32
        return result

    monkeypatch.setattr(adversarial, "pgd", watched)
    trainer.before_train()
    batch = next(iter(trainer.train_loader_x))
    trainer.batch_idx, trainer.num_batches, trainer.epoch = 0, 2, 0
    trainer.forward_backward(batch)
    types = {"fp32": torch.float32, "amp": torch.float16, "bf16": torch.bfloat16}
    (last,) = inside
    assert {e.dtype for e in seen[:last]} == {types[attack]} and last == 2
    assert [e.dtype for e in seen[last:]] == [types[training]]


@pytest.fixture
def overflowing(tiny, tmp_path):
    """A CLIP whose visual queries and keys fit float32, and no float16."""
    weights = torch.load(tiny.clip, weights_only=True)
    weights["visual.transformer.resblocks.0.attn.in_proj_weight"][: 2 * 128] *= 1e5
    torch.save(weights, tmp_path / "overflowing.pt")
    return ("--backbone", str(tmp_path / "overflowing.pt"))


@pytest.mark.parametrize(
    "method, key",
    [("AdvIVLP", "TRAINER.AdvIVLP.PREC"), ("APD", "TRAINER.APD.PREC"), ("FAP", "AT.TRAIN.PREC")],
)
def test_an_attention_that_overflows_float16_is_told(run, tmp_path, overflowing, method, key):
    result = run(method, tmp_path / "out", key, "amp", flags=overflowing)
    assert result.code == 1 and result.err.count("\n") == 1
    assert "the loss is nan at epoch 1, batch 1" in result.err
    assert f"half precision overflows ({key}: use fp32)" in result.err
    assert not (tmp_path / "out" / "results.json").exists()
    for precision in ("fp32", "bf16"):  # the ranges that hold them
        options = (key, precision, *UNTESTED)
        result = run(method, tmp_path / precision, *options, flags=overflowing)
        assert (result.code, result.err) == (0, "")


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")  # no step is taken
def test_gradients_that_overflow_float16_at_every_scale_are_told(run, tmp_path, monkeypatch):
    from apd.training.base import PromptTrainer

    losses = PromptTrainer.losses
    monkeypatch.setattr(
        PromptTrainer,
        "losses",
        lambda self, *batch: {k: 1e12 * v for k, v in losses(self, *batch).items()},
    )
    result = run("IVLP", tmp_path / "out", "TRAINER.IVLP.PREC", "amp", "OPTIM.MAX_EPOCH", 20)
    assert result.code == 1 and result.err.count("\n") == 1
    assert "the gradient is" in result.err and "TRAINER.IVLP.PREC: use fp32" in result.err
    # the scaler has skipped all steps: a scale of 1 is 16 halvings away, 2 steps an epoch
    assert "at epoch 9, batch 1 of 2" in result.err
    before = result.trainer.model.prompt_learner.state_dict()
    assert all(value.isfinite().all() for value in before.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gradient_that_is_not_finite_never_reaches_the_prompts(
    run, tmp_path, monkeypatch, precision
):
    from apd.training.base import PromptTrainer

    losses = PromptTrainer.losses

    def flat(self, *batch):  # a finite loss whose gradient is 0 times infinity
        context = self.model.prompt_learner.text[0]
        return {"loss": losses(self, *batch)["loss"] + (0 * context).sum().sqrt()}

    monkeypatch.setattr(PromptTrainer, "losses", flat)
    result = run("CoOp", tmp_path / "out", "TRAINER.COOP.PREC", precision)
    assert result.code == 1 and result.err.count("\n") == 1
    assert "the gradient is nan at epoch 1, batch 1" in result.err
    assert result.trainer.model.prompt_learner.text[0].isfinite().all()


# -- model selection -----------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["IVLP", "APD"])
def test_best_val_deploys_the_best_epoch(run, tmp_path, monkeypatch, method):
    from apd.training.base import PromptTrainer

    figures = iter([1.0, 3.0, 2.0])
    test = PromptTrainer.test
    monkeypatch.setattr(
        PromptTrainer,
        "test",
        lambda self, split=None: next(figures) if split == "val" else test(self, split),
    )
    result = run(
        method,
        tmp_path,
        "TEST.FINAL_MODEL",
        "best_val",
        "OPTIM.MAX_EPOCH",
        3,
        "TRAIN.CHECKPOINT_FREQ",
        1,
    )
    assert (result.code, result.err) == (0, "")
    for name, model in result.trainer._models.items():
        best = state(tmp_path, name, "model-best.pth.tar")
        assert same(best, state(tmp_path, name, "model.pth.tar-2"))
        assert not same(best, state(tmp_path, name, "model.pth.tar-3"))
        assert same(best, model.state_dict())


@pytest.mark.parametrize("method, attacked", [("IVLP", False), ("AdvIVLP", True)])
def test_best_val_chooses_on_validation_images_and_under_the_training_attack(
    run, tmp_path, monkeypatch, method, attacked
):
    import apd.training.base as base

    calls, evaluate = [], base.evaluate

    def recorded(model, loader, request, **more):
        calls.append((len(loader.dataset), [attack.conditions for attack in request.attacks]))
        return evaluate(model, loader, request, **more)

    monkeypatch.setattr(base, "evaluate", recorded)
    monkeypatch.setattr(base.PromptTrainer, "zero_shot_accuracy", lambda *_: 0.0)
    result = run(method, tmp_path, "TEST.FINAL_MODEL", "best_val")
    assert (result.code, result.err) == (0, "")
    train, test = (
        {**ThreatModel("linf", 1.0, alpha, steps).asdict(), "last_iterate": False}
        for alpha, steps in ((0.7, 2), (0.5, 3))
    )
    train, test = [train] if attacked else [], [test]
    assert calls == [(8, train), (8, train), (20, test)]  # 2 of 2 a class, after either epoch
    best = torch.load(tmp_path / "prompt_learner" / "model-best.pth.tar", weights_only=True)
    assert best["val_result"] in [100 * n / 8 for n in range(9)]


def test_best_val_never_chooses_on_test_images(run, tmp_path, tiny):
    shutil.copytree(Path(tiny.root) / "shapes", tmp_path / "shapes")
    shutil.rmtree(tmp_path / "shapes" / "val")
    root = ("--root", str(tmp_path))
    result = run("CoOp", tmp_path / "out", "TEST.FINAL_MODEL", "best_val", flags=root)
    assert result.code == 2 and result.err.count("\n") == 1
    assert "validation images" in result.err
    assert not (tmp_path / "out").exists()


def test_split_val_evaluates_validation_images_and_says_so(run, tmp_path):
    result = run("AdvIVLP", tmp_path, "TEST.SPLIT", "val", "OPTIM.MAX_EPOCH", 1)
    assert (result.code, result.err) == (0, "")
    found = read_results(tmp_path)["evaluations"]
    assert [(r["attack"], r["split"], r["total"]) for r in found] == [
        ("clean", "val", 8),
        ("pgd-3", "val", 8),
    ]
    model, right = result.trainer.model, 0
    for batch in result.trainer.dm.val_loader:
        right += int((model(batch["img"]).argmax(1) == batch["label"]).sum())
    assert found[0]["correct"] == right


def test_a_task_is_a_data_set_of_its_own_in_results(run, tmp_path):
    options = ("DATASET.CLASSES", "2/2/3", "DATASET.VAL_SHOTS", 1, "DATASET.VAL_TO_TEST", 0.5)
    result = run("CoOp", tmp_path, *options, "OPTIM.MAX_EPOCH", 1)
    assert (result.code, result.err) == (0, "")
    found = read_results(tmp_path)
    assert (found["dataset"], found["classes"]) == ("shapes+val 2/2/3", 2)
    assert found["class_names"] == result.trainer.dm.dataset.classnames
    assert found["config"]["DATASET"]["CLASSES"] == ["2/2/3"]
    assert found["evaluations"][0]["total"] == 2 * (5 + 1)


def test_names_of_classes_come_from_a_file_that_is_needed_no_more(run, tmp_path):
    (tmp_path / "round.txt").write_text("circle\nstar\n")
    flags = ("--eval-only", "--model-dir", str(tmp_path / "out"))
    assert run("IVLP", tmp_path / "out", "DATASET.CLASSES", tmp_path / "round.txt").code == 0
    found = read_results(tmp_path / "out")
    assert found["dataset"] == "shapes: circle, star" and found["classes"] == 2
    assert found["config"]["DATASET"]["CLASSES"] == ["circle", "star"]
    (tmp_path / "round.txt").write_text("circle\nsquare\n")
    result = run("IVLP", tmp_path / "out", "DATASET.CLASSES", tmp_path / "round.txt")
    assert result.code == 2 and "DATASET.CLASSES: ['circle', 'square'], was" in result.err
    new = run("IVLP", tmp_path / "new", "DATASET.CLASSES", tmp_path / "round.txt", flags=flags)
    assert (new.code, new.err) == (0, "")


@pytest.mark.parametrize(
    "key, value", [("CLASSES", ["1/2/0"]), ("VAL_SHOTS", 0), ("VAL_TO_TEST", 0.5)]
)
def test_keys_that_a_toolbox_s_own_data_set_ignores_are_refused(
    run, tmp_path, monkeypatch, key, value
):
    from apd.datasets.folder import Folder

    monkeypatch.setattr(Folder, "reads", ())  # as CoOp's data sets, registered before ours
    options = ("DATASET.VAL_SHOTS", 0) if key == "VAL_TO_TEST" else ()
    result = run("CoOp", tmp_path / "out", *options, f"DATASET.{key}", value)
    assert result.code == 2 and result.err.count("\n") == 1
    assert "the toolbox's own Folder does not read" in result.err
    assert not (tmp_path / "out").exists()


def test_without_a_word_the_test_images_are_evaluated(run, tmp_path):
    run("ZeroshotCLIP", tmp_path)
    found = read_results(tmp_path)["evaluations"]
    assert [(r["split"], r["total"]) for r in found] == [("test", 20)] * 2


@pytest.mark.parametrize("split", ["valid", "train", "Test"])
def test_an_unknown_split_is_refused(run, tmp_path, split):
    result = run("CoOp", tmp_path / "out", "TEST.SPLIT", split)
    assert result.code == 2 and result.err.count("\n") == 1
    assert f"TEST.SPLIT is {split}" in result.err and "test or val" in result.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("same", [False, True])
def test_split_val_needs_validation_images_of_its_own(run, tmp_path, tiny, monkeypatch, same):
    """``same``: CoOp's ImageNet has the test images as validation images, too."""
    from apd.datasets.folder import Folder

    init = Folder.__init__

    def changed(self, cfg):
        init(self, cfg)
        self._val = self._test if same else []

    monkeypatch.setattr(Folder, "__init__", changed)
    result = run("CoOp", tmp_path / "out", "TEST.SPLIT", "val")
    assert result.code == 2 and result.err.count("\n") == 1
    assert "Folder has no validation images of its own: use test" in result.err
    assert not (tmp_path / "out").exists()


def test_best_val_evaluates_again_what_it_deployed(run, tmp_path):
    out = tmp_path / "out"
    run("AdvIVLP", out, "TEST.FINAL_MODEL", "best_val", "OPTIM.MAX_EPOCH", 3)
    again = run("AdvIVLP", tmp_path / "eval", flags=("--eval-only", "--model-dir", str(out)))
    assert again.code == 0 and "model-best.pth.tar" in again.out
    first, second = (read_results(folder)["evaluations"] for folder in (out, tmp_path / "eval"))
    assert [e["correct"] for e in first] == [e["correct"] for e in second]


# -- attacks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["CoOp", "APD"])
def test_without_a_radius_only_clean_images_are_evaluated(run, tmp_path, method):
    result = run(method, tmp_path, "AT.TEST.EPS", None)
    assert (result.code, result.err) == (0, "")
    (clean,) = read_results(tmp_path)["evaluations"]
    assert clean["attack"] == "clean" and "robust" not in result.out


@pytest.mark.parametrize("method", ["APT", "AdvMaPLe", "APD"])
@pytest.mark.parametrize("key", ["EPS", "ALPHA"])
def test_adversarial_training_needs_its_threat_model(run, tmp_path, method, key):
    result = run(method, tmp_path / "out", f"AT.TRAIN.{key}", None)
    assert result.code == 2 and result.err.count("\n") == 1
    assert f"AT.TRAIN.{key}" in result.err
    assert not (tmp_path / "out").exists()


def test_clean_training_needs_no_threat_model(run, tmp_path):
    assert run("MaPLe", tmp_path, "AT.TRAIN.EPS", None, "AT.TRAIN.ALPHA", None).code == 0


@pytest.mark.parametrize(
    "option, value",
    [
        ("AT.TEST.ALPHA", None),
        ("AT.TEST.EPS", "far"),
        ("AT.TEST.EPS", -1),
        ("AT.TEST.NORM", "l1"),
        ("AT.TRAIN.NORM", "l1"),
        ("AT.TRAIN.STEPS", -1),
        # what could be noticed in the first step only
        ("AT.TRAIN.AT_LOSS_TYPE", "adv_most"),
        ("AT.TRAIN.PROMPT", "fixed"),
        ("AT.TRAIN.PROMPT", "perturbed"),  # without its PALPHA
        ("TRAINER.APD.ATTACK_LOSS", "mse"),
        ("TRAINER.APD.TAU", 0),
        ("TRAINER.APD.TEACHER.TAU", 0),
    ],
)
def test_bad_attacks_and_losses_are_refused_before_anything_is_written(
    run, tmp_path, option, value
):
    method = {"AT.TRAIN.AT_LOSS_TYPE": "AdvIVLP", "AT.TRAIN.PROMPT": "APT"}.get(option, "APD")
    result = run(method, tmp_path / "out", option, value)
    assert result.code == 2 and result.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_papers_count_is_recorded(run, tmp_path):
    run("CoOp", tmp_path, "AT.TEST.LAST_ITERATE", True)
    robust = read_results(tmp_path)["evaluations"][1]
    assert robust["threat_model"]["last_iterate"] is True


def test_the_whole_threat_model_is_configurable(run, tmp_path):
    result = run(
        "CoOp",
        tmp_path,
        "AT.TEST.NORM",
        "l2",
        "AT.TEST.EPS",
        128,
        "AT.TEST.ALPHA",
        30,
        "AT.TEST.STEPS",
        2,
        "AT.TEST.RESTARTS",
        2,
    )
    assert (result.code, result.err) == (0, "")
    threat = read_results(tmp_path)["evaluations"][1]["threat_model"]
    keys = ("norm", "eps", "alpha", "steps", "restarts")
    assert [threat[key] for key in keys] == ["l2", 128, 30, 2, 2]


# -- normalisation -------------------------------------------------------------------------------


def test_coops_normalize_is_left_to_the_model(run, tmp_path, monkeypatch):
    import apd.training.base as base

    ranges, losses = [], base.PromptTrainer.losses

    def recorded(self, images, labels):
        ranges.append((images.min().item(), images.max().item()))
        return losses(self, images, labels)

    monkeypatch.setattr(base.PromptTrainer, "losses", recorded)
    flags = ("--transforms", "random_flip", "normalize")
    result = run("CoOp", tmp_path / "with", *MEAN, flags=flags)
    assert (result.code, result.err) == (0, "")
    assert all(0 <= low < 0.2 and 0.8 < high <= 1 for low, high in ranges)
    assert run("CoOp", tmp_path / "without").code == 0
    assert same(state(tmp_path / "with"), state(tmp_path / "without"))
    with_, without = (read_results(tmp_path / name) for name in ("with", "without"))
    assert [e["correct"] for e in with_["evaluations"]] == [
        e["correct"] for e in without["evaluations"]
    ]
    # the config is kept as it was given, so that the same command finds its own run
    assert with_["config"]["INPUT"]["TRANSFORMS"] == ["random_flip", "normalize"]
    again = run("CoOp", tmp_path / "with", *MEAN, flags=flags)
    assert again.code == 0 and "kept as it is" in again.out


@pytest.mark.parametrize("method", ["APT", "APD"])
def test_normalize_in_an_adversarial_run_is_refused(run, tmp_path, method):
    result = run(method, tmp_path / "out", *MEAN, flags=("--transforms", "normalize"))
    assert result.code == 2 and result.err.count("\n") == 1
    assert "INPUT.TRANSFORMS has normalize" in result.err
    assert not (tmp_path / "out").exists()


def test_mapts_identity_normalize_changes_nothing(run, tmp_path):
    flags = ("--transforms", "random_flip", "normalize")
    result = run("AdvIVLP", tmp_path / "with", *IDENTITY, flags=flags)
    assert (result.code, result.err) == (0, "")
    assert run("AdvIVLP", tmp_path / "without").code == 0
    assert same(state(tmp_path / "with"), state(tmp_path / "without"))


def test_a_step_by_dassls_own_hook_stops_at_a_loss_that_is_not_finite(build, tmp_path):
    trainer = build("CoOp", tmp_path)
    before = [p.clone() for p in trainer.learned()]
    loss = sum(p.sum() for p in trainer.learned())
    trainer.batch_idx, trainer.num_batches = 0, 1
    with pytest.raises(NonFiniteLoss, match="the loss is nan at epoch 1, batch 1 of 1"):
        trainer.model_backward_and_update(loss * float("nan"))
    assert all(map(torch.equal, before, trainer.learned()))
    trainer.model_backward_and_update(loss)
    assert not any(map(torch.equal, before, trainer.learned()))
