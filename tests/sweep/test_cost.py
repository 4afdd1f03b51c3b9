"""The estimate of GPU hours, against counts made by hand."""

from pathlib import Path

import pytest
import torch

from apd.errors import UserError
from apd.sweep import cost, estimate
from apd.sweep.spec import read_spec

ROOT = Path(__file__).parents[2]
SPEC = "configs/sweeps/main_table.yaml"


@pytest.fixture(autouse=True)
def in_the_clone(monkeypatch):
    import apd

    apd.register()
    monkeypatch.chdir(ROOT)


def cell(trainer, dataset="caltech101", spec=SPEC, place=0, **more):
    return read_spec(spec, trainer=[trainer], dataset=[dataset], seed=[1], **more)[place]


def evaluation(images):
    return images * 8.8e9 * (1 + 100 * 2 * estimate.SURVIVING)


@pytest.mark.parametrize(
    "trainer, epochs, image, text",
    [  # passes of a training image and of a class in a training step
        ("APT", 200, 2 * 3 + 1, 2),
        ("AdvVPT", 100, 2 * 2 + 2, 1),
        ("AdvIVLP", 100, 2 * 2 + 2, 2),
        ("APD", 50, 2 * 2 + 2 + 2, 4),
        ("CoOp", 200, 1, 2),
    ],
)
def test_training_and_evaluation(trainer, epochs, image, text):
    images, of_class = 16 * 100, 6.0e9 * 16 / 77
    steps = epochs * images / 32
    work = evaluation(2465) + 100 * of_class
    work += epochs * images * image * 8.8e9 + steps * 100 * text * of_class
    assert estimate.gpu_seconds(cell(trainer)) == pytest.approx(work / estimate.SPEED)


def test_nothing_is_trained_for_zero_shot_and_in_evaluations():
    expected = (evaluation(2465) + 100 * 6.0e9 * 16 / 77) / estimate.SPEED
    assert estimate.gpu_seconds(cell("ZeroshotCLIP")) == pytest.approx(expected)
    transfer = "configs/sweeps/cross_dataset.yaml"
    target = cell("APD", "imagenet", transfer, 1, targets=["caltech101"])
    assert estimate.gpu_seconds(target) == pytest.approx(expected)


def test_half_the_classes_cost_half_the_evaluation():
    base = cell("ZeroshotCLIP", spec="configs/sweeps/base2new.yaml")
    assert estimate.gpu_seconds(base) == pytest.approx(
        estimate.gpu_seconds(cell("ZeroshotCLIP")) / 2
    )


def test_the_table_and_its_mistakes(capsys):
    assert cost.main([SPEC, "--trainer", "APT", "APD", "--dataset", "dtd", "eurosat"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[:2] for row in rows] == [["APT", "6"], ["APD", "6"], ["all", "12"]]
    assert cost.main(["configs/sweeps/demo.yaml"]) == 2
    assert "the cost of backbone mini is not known" in capsys.readouterr().err


def test_a_clip_is_timed_on_this_machine(monkeypatch):
    times = iter([0, 7, 10, 13, 20, 28, 30, 38, 40, 48])  # the second try is the fastest
    monkeypatch.setattr(estimate.time, "perf_counter", lambda: next(times))
    assert estimate._timed(lambda: torch.zeros(1), batch=6) == 3 / 6


def test_seconds_here_are_counted_passes_at_the_measured_speed(monkeypatch):
    monkeypatch.setattr(estimate, "_measured", lambda *_: (2.0, 77.0))
    (zero_shot, *_) = read_spec("configs/sweeps/demo.yaml", trainer=["ZeroshotCLIP"])
    steps = zero_shot.setup()[0].AT.TEST.STEPS
    images = 800 * (1 + 2 * steps * estimate.SURVIVING)
    assert estimate.seconds_here(zero_shot) == pytest.approx(2 * images + 10 * estimate.TOKENS)
    (few, *_) = read_spec(
        "configs/sweeps/demo.yaml", trainer=["ZeroshotCLIP"], set={"AT.TEST.SUBSET": 80}
    )
    assert estimate.seconds_here(few) == pytest.approx(2 * images / 10 + 10 * estimate.TOKENS)


def test_nothing_is_downloaded_for_an_estimate():
    with pytest.raises(UserError, match="on this machine are timed, not ViT-B/32"):
        estimate.seconds_here(cell("APD"))
