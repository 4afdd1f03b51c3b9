"""The estimate of GPU hours, against counts made by hand."""

from pathlib import Path

import pytest

from apd.sweep import cost
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
    return images * 8.8e9 * (1 + 100 * 2 * cost.SURVIVING)


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
    assert cost.gpu_seconds(cell(trainer)) == pytest.approx(work / cost.SPEED)


def test_nothing_is_trained_for_zero_shot_and_in_evaluations():
    expected = (evaluation(2465) + 100 * 6.0e9 * 16 / 77) / cost.SPEED
    assert cost.gpu_seconds(cell("ZeroshotCLIP")) == pytest.approx(expected)
    transfer = "configs/sweeps/cross_dataset.yaml"
    target = cell("APD", "imagenet", transfer, 1, targets=["caltech101"])
    assert cost.gpu_seconds(target) == pytest.approx(expected)


def test_half_the_classes_cost_half_the_evaluation():
    base = cell("ZeroshotCLIP", spec="configs/sweeps/base2new.yaml")
    assert cost.gpu_seconds(base) == pytest.approx(cost.gpu_seconds(cell("ZeroshotCLIP")) / 2)


def test_the_table_and_its_mistakes(capsys):
    assert cost.main([SPEC, "--trainer", "APT", "APD", "--dataset", "dtd", "eurosat"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[:2] for row in rows] == [["APT", "6"], ["APD", "6"], ["all", "12"]]
    assert cost.main(["configs/sweeps/demo.yaml"]) == 2
    assert "the cost of data set Digits is not known" in capsys.readouterr().err
