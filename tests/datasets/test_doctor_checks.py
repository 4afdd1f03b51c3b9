"""The doctor's looks at an installation: zero-shot CLIP beside published figures, and attacks."""

import pytest
import torch
import trees

from apd.datasets.layout import DIFFERS
from apd.doctor import selftest, zeroshot
from apd.doctor.command import main
from apd.doctor.zeroshot import judge, likely_cause, published_accuracy


@pytest.fixture
def root(tmp_path):
    trees.build("FGVCAircraft", tmp_path / "data")
    return str(tmp_path / "data")


def test_attacks_pass_their_self_test(capsys):
    assert main(["--attack", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert out.count(" ok ") == 5 and "FAILED" not in out
    assert "PGD-20 is a plain float64 loop" in out and "fp16 loses no gradients" in out


def unprojected(logits_fn, images, labels, threat, start):
    return start + 0.1


def test_an_attack_that_leaves_the_ball_fails_it(monkeypatch, capsys):
    monkeypatch.setattr(selftest, "pgd", unprojected)
    assert main(["--attack", "--device", "cpu"]) == 1
    out = capsys.readouterr().out
    assert "do not trust attacks here: ball and box hold, PGD-20 is a plain float64 loop" in out


def test_lost_gradients_fail_it(monkeypatch, capsys):
    lost = lambda logits, images, weights: torch.zeros_like(images)  # noqa: E731
    monkeypatch.setattr(selftest, "image_gradient", lost)
    assert main(["--attack", "--device", "cpu"]) == 1
    assert "8 of 8 images and 0 of 2 prompts without" in capsys.readouterr().out


def test_an_unknown_device_is_told_in_one_line(capsys):
    assert main(["--attack", "--device", "cuda:77"]) == 2
    error = capsys.readouterr().err
    assert "no device cuda:77" in error and error.count("\n") == 1


def test_data_roots_need_a_root(capsys):
    assert main(["--zeroshot", "mini"]) == 2
    assert "--root DATA is missing" in capsys.readouterr().err


def test_zero_shot_needs_a_backbone_and_names_some(tmp_path, capsys):
    assert main(["--root", str(tmp_path), "--zeroshot"]) == 2
    error = capsys.readouterr().err
    assert "--zeroshot needs a backbone: mini (characters) or mini-photo" in error
    assert error.count("\n") == 1


def test_zero_shot_takes_the_data_that_come_with_the_package(written, capsys):
    command = ["--root", written, "--dataset", "Digits"]
    assert main([*command, "--zeroshot", "mini", "--subset", "100", "--device", "cpu"]) == 0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Digits")]
    _, accuracy, images, *_ = row.split()
    assert float(accuracy) > 50 and images == "100"
    assert main(command) == 2
    assert "--zeroshot BACKBONE evaluates it" in capsys.readouterr().err
    assert main(["--root", written, "--zeroshot", "mini"]) == 2
    assert "come with the package: --dataset Clothing Digits" in capsys.readouterr().err


def test_zero_shot_is_evaluated_on_a_seeded_part_of_the_test_images(root, monkeypatch, capsys):
    seen = []
    judged = zeroshot.judge
    monkeypatch.setattr(zeroshot, "published_accuracy", lambda *names: (33.0, "a paper, table 1"))
    monkeypatch.setattr(zeroshot, "judge", lambda *a: (seen.append(a), judged(*a))[1])
    command = ["--root", root, "--dataset", "FGVCAircraft", "--zeroshot", "mini", "--device", "cpu"]
    assert main([*command, "--subset", "12"]) == 0
    ((accuracy, n, total, *_),) = seen
    assert (n, total) == (12, 30)
    out = capsys.readouterr().out
    assert "zero-shot mini (%)" in out and f"{accuracy:.1f}" in out
    assert "to the published 33.00 (a paper, table 1), within" in out
    assert main([*command, "--subset", "0"]) in (0, 1)
    assert seen[1][1:3] == (30, 30)


def test_an_accuracy_that_is_off_names_a_cause_and_fails(root, monkeypatch, capsys):
    monkeypatch.setattr(zeroshot, "published_accuracy", lambda *names: (99.9, "a paper, table 1"))
    command = ["--root", root, "--dataset", "FGVCAircraft", "--zeroshot", "mini", "--device", "cpu"]
    assert main(command) == 1
    assert "near guessing, and the likely cause are labels" in capsys.readouterr().out


def test_a_data_set_without_published_figure_is_not_judged(root, capsys):
    command = ["--root", root, "--dataset", "FGVCAircraft", "--zeroshot", "mini", "--device", "cpu"]
    assert main(command) == 0
    assert "no published figure of mini here" in capsys.readouterr().out


@pytest.mark.parametrize(
    "accuracy, n, well",
    [(62.0, 50_000, True), (62.7, 50_000, False), (64.0, 2_000, True), (66.5, 2_000, False)],
)
def test_the_bound_is_three_standard_errors_of_the_draw_and_half_a_point(accuracy, n, well):
    good, said = judge(accuracy, n, 50_000, 62.10, "coapt, table 2")
    assert good is well and said.startswith(f"{accuracy - 62.1:+.1f} to the published 62.10")


@pytest.mark.parametrize(
    "accuracy, names, made, cause",
    [
        (80, ["cat", "dog"], DIFFERS, "the split file: it is not CoOp's"),
        (80, ["cat", "dog"], "made by ...", "the split file: it was made here"),
        (5, ["n01440764", "n01443537"], "", "codes, such as n01440764"),
        (1, [f"class {c}" for c in range(100)], "", "near guessing"),
        (50, [f"class {c}" for c in range(100)], "", "interpolation"),
    ],
)
def test_the_likely_cause(accuracy, names, made, cause):
    assert cause in likely_cause(accuracy, names, made)


def test_published_figures_are_those_of_the_backbone_and_of_one_data_set():
    assert published_accuracy("ViT-B/32", "ImageNet") == (62.10, "coapt, table 2")
    assert published_accuracy("RN50", "ImageNetA")[0] == 21.83
    assert published_accuracy("ViT-B/32", "Caltech101") == (91.50, "fap, table 8")
    assert published_accuracy("RN50", "EuroSAT") == (37.56, "sharpzo_rn50, table 1")
    assert published_accuracy("ViT-L/14", "Caltech101") is None
