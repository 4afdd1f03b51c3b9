"""What only a GPU can show: ``bash scripts/test.sh -m gpu``."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from apd import ranks
from apd.attacks import ThreatModel, find_attack, pgd, seeded_start
from apd.attacks.stream import Supply
from apd.clip import build_prompted_clip, load_clip
from apd.results import read_results

ROOT = Path(__file__).parents[2]
GPU = ("USE_CUDA", True)
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]


def waits(function):
    """How often the CPU waits for the GPU."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            function()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchron" in str(one.message) for one in caught)


@pytest.fixture
def logits(tiny):
    names = ["circle", "square", "star", "triangle"]
    model = build_prompted_clip(load_clip(tiny.clip).cuda(), names, n_ctx_text=2)
    with torch.no_grad():
        return model.classifier()


def test_training_attacks_never_wait(logits):
    images, labels = torch.rand(8, 3, 32, 32).cuda(), torch.zeros(8, dtype=torch.long).cuda()
    threat = ThreatModel("linf", 2, 1, steps=4)
    pgd(logits, images, labels, threat)
    assert waits(lambda: pgd(logits, images, labels, threat)) == 0


def test_an_evaluation_waits_once_a_step(logits):
    images = torch.rand(8, 3, 32, 32).cuda()
    rows = {"index": torch.arange(8), "image": images, "label": logits(images).argmax(1)}
    threat = ThreatModel("linf", 0.01, 0.001, steps=10)  # nothing falls
    (stage,) = find_attack("pgd-10", threat).stages

    def run():
        start = seeded_start(threat, 0)
        list(stage.run(Supply([dict(rows)]), logits, batch_size=8, start=start))

    run()
    # 11 iterates, and the start: the CPU draws it, image by image
    assert waits(run) <= 11 + 2 * 8


def records(folder):
    return [(r["attack"], r["correct"], r["total"]) for r in read_results(folder)["evaluations"]]


def test_the_same_verdicts_as_on_the_cpu(run, tmp_path):
    assert run("APD", tmp_path / "cpu").code == 0
    of = ("--eval-only", "--model-dir", str(tmp_path / "cpu"))
    assert run("APD", tmp_path / "gpu", *GPU, flags=of).code == 0
    assert records(tmp_path / "gpu") == records(tmp_path / "cpu")


@pytest.mark.parametrize("method", ["APD", "MaPLe"])
def test_an_interrupted_run_goes_on_to_the_same_prompts(run, tmp_path, monkeypatch, method):
    from apd.training.base import PromptTrainer

    assert run(method, tmp_path / "whole", *GPU).code == 0
    step = PromptTrainer.forward_backward

    def stopping(trainer, batch):
        if trainer.epoch == 1:
            raise KeyboardInterrupt
        return step(trainer, batch)

    with monkeypatch.context() as patch:
        patch.setattr(PromptTrainer, "forward_backward", stopping)
        assert run(method, tmp_path / "torn", *GPU).code == 130
    assert run(method, tmp_path / "torn", *GPU).code == 0
    whole, torn = (
        torch.load(tmp_path / name / "prompt_learner/model.pth.tar-2")["state_dict"]
        for name in ("whole", "torn")
    )
    for name, value in whole.items():
        torch.testing.assert_close(torn[name], value)


@pytest.mark.parametrize("precision", ["amp", "bf16"])
def test_half_precision_trains(run, tmp_path, precision):
    options = ("TRAINER.APD.PREC", precision, "AT.TRAIN.PREC", precision, "AT.TEST.PREC", precision)
    result = run("APD", tmp_path, *GPU, *options)
    assert (result.code, result.err) == (0, "") and len(records(tmp_path)) == 2


def test_a_resnet_in_channels_last(run, tiny, tmp_path):
    options = ("MODEL.BACKBONE.NAME", tiny.resnet)
    assert run("APT", tmp_path / "cpu", *options).code == 0
    of = ("--eval-only", "--model-dir", str(tmp_path / "cpu"))
    assert run("APT", tmp_path / "gpu", *GPU, *options, flags=of).code == 0
    assert records(tmp_path / "gpu") == records(tmp_path / "cpu")


def test_a_compiled_model_gives_the_same_verdicts(run, tmp_path):
    from apd.arguments.evaluate import main

    assert run("APD", tmp_path / "run", *GPU).code == 0
    found = []
    for name, more in (("plain", []), ("compiled", ["--compile"])):
        args = [str(tmp_path / "run"), "--attack", "pgd-5", "--save-adv", str(tmp_path / name)]
        assert main([*args, *more]) == 0
        parts = [np.load(path) for path in sorted((tmp_path / name).rglob("*.npz"))]
        rows = [zip(part["index"].tolist(), part["right"].tolist()) for part in parts]
        found.append(dict(pair for part in rows for pair in part))
    assert found[0] == found[1]


@pytest.mark.parametrize("precision, tolerance", [("fp32", 1e-3), ("bf16", 0.05)])
def test_compiled_training_trains_alike(run, tmp_path, precision, tolerance):
    """As tests/trainers/test_options.py, by the compiler's code for GPUs."""
    torch.compiler.reset()  # what is compiled is kept for a process, and only so much of it
    options = (
        "TRAINER.APD.PREC",
        precision,
        "OPTIM.MAX_EPOCH",
        1,
        "OPTIM.WARMUP_EPOCH",
        0,
        "TRAINER.PROMPT.COMPILE",
    )
    eager = run("APD", tmp_path / "eager", *GPU, *options, False)
    compiled = run("APD", tmp_path / "compiled", *GPU, *options, True)
    assert [(result.code, result.err) for result in (eager, compiled)] == [(0, "")] * 2
    (epoch,), (other,) = (result.trainer.history for result in (eager, compiled))
    assert other["loss"] == pytest.approx(epoch["loss"], rel=tolerance)
    for one, two in zip(records(tmp_path / "eager"), records(tmp_path / "compiled")):
        assert one[0] == two[0] and abs(one[1] - two[1]) <= 1  # of 20 images


class Several(int):
    """A number of ranks that passes for more than one."""

    def __gt__(self, other):
        return other == 1


def test_what_ranks_share_goes_through_nccl(run, tmp_path, monkeypatch):
    """One rank shares with nobody, but by the same calls, on tensors of the GPU."""
    dist, device = torch.distributed, torch.device("cuda", 0)
    assert run("APD", tmp_path / "plain", *GPU).code == 0
    calls, reduce = [], dist.all_reduce
    store = f"file://{tmp_path / 'store'}"
    dist.init_process_group("nccl", init_method=store, rank=0, world_size=1, device_id=device)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(ranks, "size", lambda: Several(1))
            patch.setattr(dist, "all_reduce", lambda x: calls.append(x.device) or reduce(x))
            assert run("APD", tmp_path / "nccl", *GPU).code == 0
            own = torch.rand(3, 2, device=device, requires_grad=True)
            gathered = ranks.gather(own, [3])
            (gathered**2).sum().backward()
    finally:
        dist.destroy_process_group()
    assert calls and {place.type for place in calls} == {"cuda"}
    assert torch.equal(gathered, own) and torch.equal(own.grad, 2 * own)
    assert records(tmp_path / "nccl") == records(tmp_path / "plain")


@pytest.mark.parametrize("count", [1, 2])
def test_torchrun_trains_what_one_process_trains(run, command, tmp_path, count):
    if torch.cuda.device_count() < count:
        pytest.skip("there is one GPU only")
    assert run("APD", tmp_path / "one", *GPU).code == 0
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    line += ["--nproc-per-node", str(count), "train.py"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    arguments = command("APD", tmp_path / "ranks", *GPU)
    subprocess.run([*line, *arguments], cwd=ROOT, env=environment, check=True)
    assert records(tmp_path / "ranks") == records(tmp_path / "one")
