import csv
import subprocess
import sys

import pytest
from PIL import Image
from sample_results import THREAT, record

from apd.results.table import build_table, load_runs, main


def lines(text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]


def test_one_row_a_method_in_canonical_order(save, tmp_path, capsys):
    for method in ("Zeta", "APD", "AdvIVLP", "Alpha", "ZeroshotCLIP", "APT", "CoOp"):
        save(method=method)
    markdown = tmp_path / "out" / "table.md"
    assert main([str(tmp_path), "--markdown", str(markdown)]) == 0
    header, rule, *rows = lines(markdown.read_text())
    assert header == [
        "method",
        "prompts",
        "parameters",
        "clean (%)",
        "PGD-100 eps=2/255 (%)",
        "seconds",
    ]
    assert [cell.endswith(":") for cell in rule] == [False, False, True, True, True, True]
    order = ["ZeroshotCLIP", "CoOp", "APT", "AdvIVLP", "APD", "Alpha", "Zeta"]
    assert [row[0] for row in rows] == order
    assert rows[4] == ["APD", "text + visual", "12,345", "85.0", "42.0", "31"]
    printed = capsys.readouterr().out
    assert "PGD-100 eps=2/255 (%)" in printed and "ZeroshotCLIP" in printed


def test_seeds_become_mean_and_standard_deviation(save, tmp_path):
    for seed, robust in ((1, 40.0), (2, 42.0), (3, 47.0)):
        save(seed=seed, robust=robust, threat={"seed": seed})
    save(method="CoOp", robust=10.0)
    md, table = tmp_path / "t.md", tmp_path / "t.csv"
    assert main([str(tmp_path), "--markdown", str(md), "--csv", str(table)]) == 0
    header, _, coop, apd = lines(md.read_text())
    assert dict(zip(header, apd))["PGD-100 eps=2/255 (%)"] == "43.0 ± 3.6"
    assert dict(zip(header, apd))["runs"] == "3"
    assert dict(zip(header, coop))["PGD-100 eps=2/255 (%)"] == "10.0"
    with open(table, newline="", encoding="utf-8") as f:
        coop, apd = csv.DictReader(f)
    assert apd["method"] == "APD" and apd["runs"] == "3" and apd["parameters"] == "12345"
    assert float(apd["PGD-100 eps=2/255 (%)"]) == 43
    assert float(apd["PGD-100 eps=2/255 (%), std"]) == pytest.approx(13**0.5)
    assert coop["PGD-100 eps=2/255 (%), std"] == ""


def test_a_missing_evaluation_is_a_dash(save, tmp_path, capsys):
    save()
    save(method="CoOp", evaluations=[record("clean", 64.0)])
    assert main([str(tmp_path)]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if "CoOp" in line)
    assert row.split()[-3:-1] == ["64.0", "-"]


def test_header_tells_norm_and_last_iterate(save, tmp_path, capsys):
    save(threat={"norm": "l2", "eps": 127.5, "last_iterate": True})
    assert main([str(tmp_path)]) == 0
    assert "PGD-100 L2 eps=127.5/255, last iterate (%)" in capsys.readouterr().out


@pytest.mark.parametrize(
    "changed",
    [{"eps": 4}, {"alpha": 0.5}, {"norm": "l2"}, {"restarts": 5}, {"last_iterate": True}],
)
def test_two_threat_models_in_one_column_are_refused(save, tmp_path, capsys, changed):
    one, other = save(), save(method="APT", threat=changed)
    assert main([str(one), str(other)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert "threat model of pgd-100" in error
    assert str(one) in error and str(other) in error
    ((key, value),) = changed.items()
    assert f"{{{key!r}: {THREAT[key]!r}}} in {one}, {{{key!r}: {value!r}}} in {other}" in error


@pytest.mark.parametrize(
    ("field", "value"),
    [("dataset", "Caltech101"), ("subsample", "new"), ("backbone", "RN50"), ("shots", 4)],
)
def test_runs_on_different_grounds_are_refused(save, tmp_path, capsys, field, value):
    save()
    save(method="APT", **{field: value})
    assert main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert field in error and str(value) in error


def test_runs_on_different_test_images_are_refused(save, tmp_path, capsys):
    save()
    save(method="APT", evaluations=[record("clean", 50.0, total=100)])
    assert main([str(tmp_path)]) == 2
    assert "100" in capsys.readouterr().err


def test_zero_shot_has_no_shots(save, tmp_path):
    save()
    save(method="ZeroshotCLIP", shots=-1, trainable_parameters=0, modality="none")
    assert main([str(tmp_path)]) == 0


def test_the_same_seed_twice_is_refused(save, tmp_path, capsys):
    one, other = save("one"), save("other")
    assert main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "seed 1 twice" in error and str(one) in error and str(other) in error


def test_a_run_named_twice_counts_once(save, tmp_path):
    run = save()
    (row,) = build_table(load_runs([run, tmp_path, str(run)]))
    assert row["runs"] == 1


def test_nothing_to_show_and_damage_exit_with_2(save, tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err
    assert main([str(tmp_path / "nowhere")]) == 2
    capsys.readouterr()
    run = save()
    (run / "results.json").write_text("{")
    assert main([str(tmp_path)]) == 2
    assert str(run) in capsys.readouterr().err


def test_plot(save, tmp_path):
    for seed, robust in ((1, 40.0), (2, 44.0)):
        save(seed=seed, robust=robust)
    save(method="CoOp", modality="text", clean=64, robust=11)
    save(method="New", modality="unheard of", clean=64, robust=11)
    save(method="VPT", evaluations=[record("clean", 64.0)])
    plot = tmp_path / "plot.png"
    assert main([str(tmp_path), "--plot", str(plot)]) == 0
    with Image.open(plot) as image:
        assert image.format == "PNG" and min(image.size) > 600
        assert len(image.convert("RGB").getcolors(10**6)) > 10


def test_a_plot_needs_a_robust_evaluation_and_a_png_name(save, tmp_path, capsys):
    run = save(evaluations=[record("clean", 64.0)])
    assert main([str(run), "--plot", str(tmp_path / "plot.png")]) == 2
    assert "nothing to plot" in capsys.readouterr().err
    assert main([str(run), "--plot", str(tmp_path / "plot.jpg")]) == 2
    assert "PNG" in capsys.readouterr().err
    assert not list(tmp_path.glob("plot*"))


def test_labels_neither_overlap_nor_leave_the_axes():
    from matplotlib.figure import Figure

    from apd.results.plot import _label

    figure = Figure(figsize=(6.4, 4.8))
    axes = figure.add_subplot()
    points = [(50, 20), (50.2, 20.1), (50.1, 19.8), (49.9, 20.3), (70, 40), (70, 20)]
    axes.scatter(*zip(*points))
    _label(axes, points, ["AdvIVLP", "AdvMaPLe", "AdvVPT", "APT", "APD", "ZeroshotCLIP"])
    boxes = [text.get_window_extent() for text in axes.texts]
    for i, box in enumerate(boxes):
        assert not box.count_overlaps(boxes[:i])
        assert axes.bbox.contains(*box.min) and axes.bbox.contains(*box.max)


def test_runs_as_a_module(save):
    command = [sys.executable, "-W", "error", "-m", "apd.results.table", str(save())]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "APD" in done.stdout


def test_a_flag_follows_its_number_into_the_table(save, tmp_path, capsys):
    flagged = record("pgd-100", 42.0, THREAT) | {"flags": {"zero-gradients": "on 3.0 %"}}
    twice = record("pgd-100", 41.0, THREAT) | {
        "flags": {"unbounded": "9 % stand", "zero-gradients": "on 3.0 %"}
    }
    save(evaluations=[record("clean", 80.0), flagged])
    save(method="CoOp", evaluations=[record("clean", 80.0), twice])
    save(method="APT")
    markdown = tmp_path / "t.md"
    assert main([str(tmp_path), "--markdown", str(markdown)]) == 0
    for text in (capsys.readouterr().out, markdown.read_text()):
        rows = {line.split()[0]: line for line in text.replace("| ", "").splitlines() if line}
        assert "41.0 \u20201 \u20202" in rows["CoOp"] and "42.0 \u20202" in rows["APD"]
        assert "\u2020" not in rows["APT"] and "\u2020" not in rows["method"]
        notes = "\u20201 unbounded: 9 % stand\n\n\u20202 zero-gradients: on 3.0 %"
        assert text.rstrip().endswith(notes)


def test_a_threat_model_other_than_white_box_in_fp32_is_in_the_header(save, tmp_path, capsys):
    threat = {"source": "transfer:zeroshot", "precision": "bf16"}
    save(threat=threat)
    assert main([str(tmp_path)]) == 0
    assert "eps=2/255, transfer:zeroshot, bf16 (%)" in capsys.readouterr().out
