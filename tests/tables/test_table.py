"""The table of methods, and what all tables have in common."""

import csv
import json
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from copy import deepcopy
from dataclasses import replace
from itertools import product
from operator import mul
from pathlib import Path
from statistics import stdev

import pytest
from sample_results import THREAT, check_golden, keep_verdicts, record

from apd.results.words import signed
from apd.tables.cells import Comparison, OverSets
from apd.tables.command import OVER_TASKS, load_runs, main
from apd.tables.compare import compare
from apd.tables.kinds import TABLES, methods

ROBUST = "PGD-100 eps=2/255 (%)"


def lines(text):
    """Cells of a Markdown table: header, rule and rows."""
    table = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


def error_of(capsys, *args):
    assert main([str(arg) for arg in args]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


def row_of(table, name):
    return next(row for row in table.rows if name in row.values())


# -- rows and columns ------------------------------------------------------------------------------


def test_one_row_a_method_in_canonical_order(save, tmp_path, capsys):
    for method in ("Zeta", "APD", "AdvIVLP", "Alpha", "ZeroshotCLIP", "APT", "CoOp"):
        save(method=method)
    markdown = tmp_path / "out" / "table.md"
    assert main([str(tmp_path), "--markdown", str(markdown)]) == 0
    header, rule, *rows = lines(markdown.read_text())
    assert header == ["method", "prompts", "parameters", "clean (%)", ROBUST, "seconds"]
    assert [cell.endswith(":") for cell in rule] == [False, False, True, True, True, True]
    order = ["ZeroshotCLIP", "CoOp", "APT", "AdvIVLP", "APD", "Alpha", "Zeta"]
    assert [row[0] for row in rows] == order
    assert rows[4] == ["APD", "text + visual", "12,345", "**85.0**", "**42.0**", "31"]
    printed = capsys.readouterr().out
    assert ROBUST in printed and "ZeroshotCLIP" in printed


def test_seeds_become_mean_and_standard_deviation(save, tmp_path):
    for seed, robust in ((1, 40.0), (2, 42.0), (3, 47.0)):
        save(seed=seed, robust=robust, threat={"seed": seed})
    save(method="CoOp", robust=10.0)
    md, table = tmp_path / "t.md", tmp_path / "t.csv"
    assert main([str(tmp_path), "--markdown", str(md), "--csv", str(table)]) == 0
    header, _, coop, apd = lines(md.read_text())
    assert dict(zip(header, apd))[ROBUST] == "43.0 ± 3.6"
    assert dict(zip(header, coop))[ROBUST] == "10.0"
    assert dict(zip(header, coop))["method"] == "CoOp †1"  # of fewer seeds than the others
    assert "over seeds, n = 3" in md.read_text() and "†1 n = 1" in md.read_text()
    with open(table, newline="", encoding="utf-8") as file:
        coop, apd = (row for row in csv.DictReader(file) if row["column"] == ROBUST)
    assert (apd["method"], apd["n"], apd["parameters"]) == ("APD", "3", "12345")
    assert float(apd["mean"]) == 43 and float(apd["std"]) == pytest.approx(13**0.5, abs=1e-6)
    assert (coop["n"], coop["std"], coop["missing"]) == ("1", "", "2")


def test_a_number_of_fewer_seeds_is_marked(save, tmp_path):
    for seed in (1, 2):
        save(seed=seed)
        save(method="CoOp", seed=seed)
    save(seed=3, evaluations=[record("clean", 85.0)])
    save(method="CoOp", seed=3)
    (table,) = methods(load_runs([tmp_path]))
    assert row_of(table, "APD")[ROBUST].n == 2 and not row_of(table, "APD")[ROBUST].missing
    (row,) = [line for line in table.format("pipe").splitlines() if line.startswith("| APD")]
    assert row.count("†") == 1 and "†1 n = 2" in table.format()


def test_an_evaluation_that_was_not_made_is_a_dash(save, tmp_path, capsys):
    save()
    save(method="CoOp", evaluations=[record("clean", 64.0)])
    assert main([str(tmp_path)]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if "CoOp" in line)
    assert row.split()[-3:-1] == ["64.0", "-"]


def test_header_tells_norm_and_last_iterate(save, tmp_path, capsys):
    save(threat={"norm": "l2", "eps": 127.5, "last_iterate": True})
    assert main([str(tmp_path)]) == 0
    assert "PGD-100 L2 eps=127.5/255, last iterate (%)" in capsys.readouterr().out


def test_a_threat_model_other_than_white_box_in_fp32_is_in_the_header(save, tmp_path, capsys):
    save(threat={"source": "transfer:zeroshot", "precision": "bf16"})
    assert main([str(tmp_path)]) == 0
    assert "eps=2/255, transfer:zeroshot, bf16 (%)" in capsys.readouterr().out


def test_evaluations_of_a_part_of_the_images_have_a_table_of_their_own(save, tmp_path):
    part = record("pgd-20", 50.0, THREAT, total=100, images={"count": 100, "seed": 0})
    save(evaluations=[part, record("clean", 85.0)])
    save(method="CoOp")
    whole, second = methods(load_runs([tmp_path]))
    assert whole.measured == ["clean (%)", ROBUST, "seconds"]
    assert second.measured == ["PGD-20 eps=2/255, 100 images (%)"]
    assert second.title == "Digits, 16 shots, mini, 100 images"
    assert [row["method"] for row in second.rows] == ["APD"]


def test_evaluations_of_a_part_that_all_methods_have_are_in_the_one_table(save, tmp_path):
    part = record("pgd-20", 50.0, THREAT, total=100, images={"count": 100, "seed": 0})
    for method in ("CoOp", "APD"):
        save(method=method, evaluations=[part, record("clean", 85.0)])
    (table,) = methods(load_runs([tmp_path]))
    assert table.measured == ["clean (%)", "PGD-20 eps=2/255, 100 images (%)", "seconds"]
    assert table.title == "Digits, 16 shots, mini"


def test_a_part_of_large_test_sets_and_all_of_small_ones_are_one_column(save, tmp_path):
    for dataset, total in (("Digits", 500), ("Pets", 360)):
        part = {"images": {"count": 500, "seed": 0}} if dataset == "Digits" else {}
        found = [record("clean", 80.0, total=total, **part)]
        save(f"{dataset}/APD", method="APD", dataset=dataset, evaluations=found)
    (table,) = methods(load_runs([tmp_path]))
    assert "clean, at most 500 images (%)" in table.title
    (row,) = table.rows
    assert row["average"].values == [80.0]
    save("Cars/APD", method="APD", dataset="Cars", evaluations=[record("clean", 80.0, total=501)])
    assert len(methods(load_runs([tmp_path]))) == 2  # all of its images are more


def test_one_table_never_holds_two_splits(save, tmp_path, capsys):
    """Their numbers of images may agree."""
    save("a", method="CoOp")
    validated = [record("clean", 90.0, split="val"), record("pgd-100", 50.0, THREAT, split="val")]
    save("b", evaluations=validated)
    assert main([str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "the split (--split chooses one): test in" in line and "val in" in line
    assert main([str(tmp_path), "--split", "val"]) == 0
    out = capsys.readouterr().out
    assert "clean, validation images (%)" in out and "90.0" in out and "CoOp" not in out
    assert main([str(tmp_path), "--split", "test"]) == 0
    assert "CoOp" in capsys.readouterr().out
    assert main([str(tmp_path / "a"), "--split", "val"]) == 2
    assert "none of these runs has an evaluation on val images" in capsys.readouterr().err


def test_several_data_sets_are_columns_with_an_average(save, tmp_path):
    for seed, shift in ((1, 0), (2, 2)):
        for dataset, clean in (("Digits", 80.0), ("DTD", 60.0)):
            save(f"{dataset}{seed}", dataset=dataset, seed=seed, clean=clean + shift)
    save("one", method="CoOp", clean=90.0)
    clean, robust = methods(load_runs([tmp_path]))
    assert clean.measured == ["DTD", "Digits", "average"]
    assert clean.title == "clean (%), 16 shots, mini" and robust.title.startswith(ROBUST)
    coop, apd = clean.rows
    assert apd["average"].values == [70, 72] and apd["average"].seeds == [1, 2]
    assert coop["Digits"].values == [90] and coop["DTD"].values == coop["average"].values == []
    assert len(coop["average"].missing) == 3
    assert [line.split()[1:] for line in clean.format().splitlines() if "CoOp" in line] == [
        ["†1", "missing", "90.0", "missing"]
    ]  # the number there is of fewer seeds


def test_a_kind_of_flag_has_one_mark_and_one_footnote(save, tmp_path):
    """However many numbers have it; the footnote says how many, and what the first one is."""
    for seed, chance in ((1, "9 % is chance"), (2, "8 % is chance")):
        save(method="CoOp", seed=seed)
        flags = {"flags": {"chance": chance}}
        evaluations = [record("clean", 9.0, **flags), record("pgd-100", 5.0, THREAT, **flags)]
        save(seed=seed, evaluations=evaluations)
    flags = {"flags": {"chance": "6 % is chance", "random-logits": "they vary"}}
    save(method="APT", evaluations=[record("clean", 6.0, **flags)])
    (table,) = methods(load_runs([tmp_path]))
    text = table.format()
    rows = {line.split()[0]: line.split() for line in text.splitlines() if line}
    assert [word for word in rows["APT"] if "†" in word] == ["†1", "†2", "†3"]
    assert [word for word in rows["APD"] if "†" in word] == ["†2", "†2"]
    assert text.endswith(
        "†1 n = 1\n\n"
        "†2 chance, 5 evaluations, the first: 6 % is chance\n\n"
        "†3 random-logits: they vary"
    )


# -- what cannot be compared -----------------------------------------------------------------------


@pytest.mark.parametrize("changed", [{"alpha": 0.5}, {"loss": "margin"}, {"restarts": 5}])
def test_two_threat_models_in_one_column_are_refused(save, capsys, changed):
    one, other = save(), save(method="APT", threat=changed)
    error = error_of(capsys, one, other)
    assert "threat model of PGD-100 eps=2/255" in error
    ((key, value),) = changed.items()
    assert f"{{{key!r}: {THREAT[key]!r}}} in {one}, {{{key!r}: {value!r}}} in {other}" in error


@pytest.mark.parametrize(
    "changed", [{"eps": 4}, {"norm": "l2"}, {"last_iterate": True}, {"precision": "bf16"}]
)
def test_threat_models_that_the_header_tells_apart_have_columns_of_their_own(
    save, tmp_path, changed
):
    save()
    save(method="APT", threat=changed)
    (table,) = methods(load_runs([tmp_path]))
    _, first, second, _ = table.measured
    filled = [[len(row[column].values) for row in table.rows] for column in (first, second)]
    assert sorted(filled) == [[0, 1], [1, 0]]


@pytest.mark.parametrize(
    ("field", "value"),
    [("subsample", "new"), ("backbone", "RN50"), ("shots", 4), ("host", "dassl 0.6")],
)
def test_runs_on_different_grounds_are_refused(save, tmp_path, capsys, field, value):
    save()
    save(method="APT", **{field: value})
    error = error_of(capsys, tmp_path, "--table", "methods")
    assert f"two values of {field}" in error and str(value).split()[0] in error


def test_versions_of_one_host_are_not_two_hosts(save, tmp_path):
    save()
    save(method="APT", host="embedded 2")
    assert main([str(tmp_path)]) == 0


def test_runs_on_different_test_images_are_refused(save, tmp_path, capsys):
    save()
    save(method="APT", evaluations=[record("clean", 50.0, total=100)])
    assert "100" in error_of(capsys, tmp_path)


def test_zero_shot_has_no_shots(save, tmp_path):
    save()
    save(method="ZeroshotCLIP", shots=-1, trainable_parameters=0, modality="none")
    assert main([str(tmp_path)]) == 0


def test_the_same_seed_twice_is_refused(save, tmp_path, capsys):
    one, other = save("one"), save("other")
    error = error_of(capsys, tmp_path, "--table", "methods")
    assert "seed 1 twice" in error and str(one) in error and str(other) in error


def test_configs_of_one_method_are_told_apart(save, tmp_path, capsys):
    save("one", config={"TRAINER": {"APD": {"TAU": 1.0}}})
    save("other", config={"TRAINER": {"APD": {"TAU": 2.0}}})
    error = error_of(capsys, tmp_path, "--table", "methods")
    assert "TRAINER.APD.TAU 1.0 and 2.0" in error and "--table ablation" in error


def test_seeds_with_different_configs_have_no_mean(save, tmp_path, capsys):
    free = {"SEED": 1, "DATASET": {"ROOT": "a"}, "AT": {"TEST": {"ATTACKS": []}}}
    other = {"SEED": 2, "DATASET": {"ROOT": "b"}, "AT": {"TEST": {"ATTACKS": ["fgsm"]}}}
    save(seed=1, config=free)
    save(seed=2, config={**other, "NEW_KEY": 1})
    assert main([str(tmp_path)]) == 0
    save(seed=3, config={"OPTIM": {"LR": 0.1}, **free})
    save(seed=1, config={"OPTIM": {"LR": 0.2}, **free})
    assert "OPTIM.LR 0.2 and 0.1" in error_of(capsys, tmp_path, "--table", "methods")


def test_nothing_to_show_and_damage_exit_with_2(save, tmp_path, capsys):
    assert str(tmp_path) in error_of(capsys, tmp_path)
    error_of(capsys, tmp_path / "nowhere")
    run = save()
    (run / "results.json").write_text("{")
    assert str(run) in error_of(capsys, tmp_path)


# -- best, missing, flags --------------------------------------------------------------------------


def marked(save, tmp_path, **clean):
    """Clean accuracies of the Markdown table, by method."""
    for method, value in clean.items():
        save(method=method, clean=value)
    (table,) = methods(load_runs([tmp_path]))
    return {row[0]: row[3] for row in lines(table.format("pipe"))[2:]}


def test_best_is_bold_and_second_underlined(save, tmp_path):
    found = marked(save, tmp_path, ZeroshotCLIP=90.0, CoOp=80.0, APD=85.0)
    assert found == {"ZeroshotCLIP": "**90.0**", "CoOp": "80.0", "APD": "<ins>85.0</ins>"}


def test_numbers_that_look_alike_are_marked_alike(save, tmp_path):
    found = marked(save, tmp_path, CoOp=90.04, VPT=80.0, APT=79.99, APD=90.0)
    ins = "<ins>80.0</ins>"
    assert found == {"CoOp": "**90.0**", "VPT": ins, "APT": ins, "APD": "**90.0**"}


def test_a_number_alone_is_not_the_best(save, tmp_path):
    assert marked(save, tmp_path, APD=90.0) == {"APD": "90.0"}


def test_an_incomplete_mean_is_not_the_best(save, tmp_path):
    for method in ("CoOp", "APT"):
        for seed in (1, 2):
            save(method=method, seed=seed, clean=50.0)
    found = marked(save, tmp_path, APD=99.0)
    assert found["APD †1"] == "99.0" and found["CoOp"] == "**50.0 ± 0.0**"


def test_missing_runs_are_not_the_same_as_evaluations_not_made(save, tmp_path, capsys):
    for seed in (1, 2):
        save(f"d{seed}", seed=seed, dataset="DTD")
        save(seed=seed)
    save(method="CoOp", evaluations=[record("clean", 50.0)])
    assert main([str(tmp_path)]) == 0
    clean, robust = capsys.readouterr().out.split(ROBUST)
    assert [line.split() for line in clean.splitlines() if "CoOp" in line] == [
        ["CoOp", "†1", "missing", "50.0", "missing"]
    ]
    assert [line.split() for line in robust.splitlines() if "CoOp" in line] == [
        ["CoOp", "missing", "-", "missing"]
    ]
    assert clean.count("missing: 3 runs") == 1


def test_a_flag_follows_its_number_into_the_table(save, tmp_path, capsys):
    flagged = record("pgd-100", 42.0, THREAT) | {"flags": {"zero-gradients": "on 3.0 %"}}
    twice = record("pgd-100", 41.0, THREAT) | {
        "flags": {"unbounded": "9 % stand", "zero-gradients": "on 3.0 %"}
    }
    save(evaluations=[record("clean", 80.0), flagged])
    save(method="CoOp", evaluations=[record("clean", 80.0), twice])
    save(method="APT", robust=1.0)
    markdown = tmp_path / "t.md"
    assert main([str(tmp_path), "--markdown", str(markdown)]) == 0
    for text in (capsys.readouterr().out, markdown.read_text()):
        plain = text.replace("| ", "").replace("*", "").replace("<ins>", "").replace("</ins>", "")
        rows = {line.split()[0]: line for line in plain.splitlines() if line}
        assert "41.0 \u20201 \u20202" in rows["CoOp"] and "42.0 \u20202" in rows["APD"]
        assert "\u2020" not in rows["APT"] and "\u2020" not in rows["method"]
        notes = "\u20201 unbounded: 9 % stand\n\n\u20202 zero-gradients: on 3.0 %"
        assert text.rstrip().endswith(notes)


def test_an_average_keeps_the_flags(save, tmp_path):
    flagged = {**record("clean", 80.0), "flags": {"random-logits": "other logits"}}
    save("a", evaluations=[flagged])
    save("b", dataset="DTD", evaluations=[record("clean", 80.0)])
    (table,) = methods(load_runs([tmp_path]))
    (value,) = table.rows[0]["average"].measurements
    assert list(value.flags) == ["random-logits"]
    # the sentence that the table has for this flag stands for the average too
    assert "80.0 †1    80.0 †1" in table.format()
    assert table.format().endswith("\n†1 random-logits: other logits")


# -- the baseline ----------------------------------------------------------------------------------


def save_verdicts(save, method, lost, seed=1, images="i", dataset="Digits", digest="k"):
    """A run with verdicts of each image."""
    share = [100 * sum(one == 0 for one in lost) / len(lost)]
    clean = 100 * sum(one != -1 for one in lost) / len(lost)
    attacked = record("pgd-100", share[0], {**THREAT, "seed": seed}, total=len(lost), key=digest)
    run = save(
        f"{method}/{dataset}/{seed}",
        method=method,
        seed=seed,
        dataset=dataset,
        evaluations=[record("clean", clean, total=len(lost)), attacked],
    )
    keep_verdicts(run, attacked, lost, images)
    return run


def compared(tmp_path, name="APD", column=ROBUST):
    """Difference and interval of the JSON table."""
    path = tmp_path / "t.json"
    assert main([str(tmp_path), "--baseline", "CoOp", "--json", str(path)]) == 0
    tables = json.loads(path.read_text(encoding="utf-8"))["tables"]
    rows = [row for table in tables for row in table["rows"] if row["method"] == name]
    cell = next(row for row in reversed(rows) if column in row)[column]
    return cell["difference"], cell["interval"]


def test_the_interval_is_that_of_a_paired_bootstrap(save, tmp_path, capsys):
    import numpy as np
    from scipy.stats import bootstrap

    rng = np.random.default_rng(1)
    base, ours = rng.integers(0, 2, (2, 300)), rng.integers(-1, 2, (2, 300))
    for seed in (1, 2):
        save_verdicts(save, "CoOp", base[seed - 1].tolist(), seed)
        save_verdicts(save, "APD", ours[seed - 1].tolist(), seed)
    difference, (low, high) = compared(tmp_path)
    each = (ours == 0).mean(axis=0) - (base == 0).mean(axis=0)
    assert difference == pytest.approx(100 * each.mean())
    expected = bootstrap((100 * each,), np.mean, method="percentile", rng=0).confidence_interval
    assert (low, high) == pytest.approx(expected, abs=0.5)
    assert f"({difference:+.1f} [{low:+.1f}, {high:+.1f}])" in capsys.readouterr().out
    assert compared(tmp_path) == (difference, [low, high])  # the draws are fixed


def test_equal_verdicts_differ_by_nothing(save, tmp_path):
    for method in ("CoOp", "APD"):
        save_verdicts(save, method, [0, 1, -1, 0])
    assert compared(tmp_path) == (0, [0, 0]) == compared(tmp_path, column="clean (%)")


def test_an_average_over_data_sets_has_an_interval(save, tmp_path):
    for dataset, lost in (("A", [0, 1] * 20), ("B", [0, 0, 1, 1, 1] * 20)):
        save_verdicts(save, "CoOp", [1] * len(lost), dataset=dataset, images=dataset)
        save_verdicts(save, "APD", lost, dataset=dataset, images=dataset)
    difference, (low, high) = compared(tmp_path, column="average")
    assert difference == pytest.approx(45)
    spread = 100 * 1.96 * (0.25 / 40 + 0.24 / 100) ** 0.5 / 2  # of a mean of two proportions
    assert (low, high) == pytest.approx((45 - spread, 45 + spread), abs=1.5)


@pytest.mark.parametrize("kept", [{"images": "others"}, None])
def test_without_verdicts_of_the_same_images_there_is_no_interval(save, tmp_path, kept):
    save_verdicts(save, "CoOp", [1, 1, 1, 0])
    run = save_verdicts(save, "APD", [0, 1, 0, 0], **kept or {})
    if kept is None:
        shutil.rmtree(run / "evaluations")
    assert compared(tmp_path) == (50, None)


@pytest.mark.parametrize(
    "difference, said",
    [
        (0.04, "+0.04"),
        (-0.024, "-0.02"),  # the bound of the study's second round, which was printed as +0.0
        (0.0049, "+0.005"),
        (-0.0004, "-0.000"),
        (-0.05, "-0.1"),
        (-0.96, "-1.0"),
        (-0.0, "+0.0"),
        (-1e-9, "+0.0"),  # the last bits of a sum
    ],
)
def test_a_difference_next_to_zero_shows_its_side(difference, said):
    assert signed(difference) == said


def test_bounds_next_to_zero_show_their_side_in_every_format(save):
    save()
    (table,) = methods(load_runs([save(method="CoOp").parent.parent]))
    over_sets = OverSets(9, 1, 8, -2.0, 0.004, 0.0002)
    comparison = Comparison(-1.07, (-2.118, -0.024), over_sets)
    cell = replace(table.rows[1]["clean (%)"], comparison=comparison)
    table = replace(table, rows=[table.rows[0], {**table.rows[1], "clean (%)": cell}])
    said = "(-1.1 [-2.1, -0.02]; over sets [-2.0, +0.004], p {} 0.001)"
    latex = said.format("$<$")
    for number in ("-1.1", "-2.1", "-0.02", "-2.0", "+0.004"):
        latex = latex.replace(number, f"${number}$")
    assert said.format("<") in table.format("simple")
    assert said.format("&lt;") in table.format("pipe")
    assert said.format("&lt;") in table.format("html")
    assert latex in table.format("latex")


def test_what_is_added_to_tables_leaves_them_as_they_were(save, tmp_path):
    save_seeds(save, "A")
    save_seeds(save, "B")
    runs = load_runs([tmp_path])
    tables = methods(runs)
    before = deepcopy(tables)
    compared = compare(tables, "CoOp", "seeds")
    assert compared != before and compared[0].rows[1]["average"].comparison
    noted = compared[0].with_notes("a note")
    assert list(noted.notes) == [*compared[0].notes, "a note"]
    assert tables == before and compared[0].format() == compare(before, "CoOp", "seeds")[0].format()


def test_every_kind_is_in_the_documentation():
    docs = Path(__file__).parents[2] / "docs"
    assert all(f"**`{kind}`**: " in (docs / "tables.md").read_text() for kind in TABLES)
    assert all(f"--table {kind}`" in (docs / "tasks.md").read_text() for kind in OVER_TASKS)


def test_next_to_nothing_has_no_minus(save, tmp_path, capsys):
    save(method="CoOp", clean=50.0)
    save(method="APD", clean=50.0 - 1e-12)
    assert main([str(tmp_path), "--baseline", "CoOp"]) == 0
    assert "50.0 (+0.0)" in capsys.readouterr().out


def test_an_unknown_baseline_names_those_there_are(save, tmp_path, capsys):
    save()
    save(method="CoOp")
    error = error_of(capsys, tmp_path, "--baseline", "Coop")
    assert "Coop" in error and "CoOp, APD" in error


# -- commands --------------------------------------------------------------------------------------


def save_run(save, method="CoOp", dataset="Digits", shots=16, seed=1, name="digits", **fields):
    folder = f"output/{name}/{method}/mini_{shots}shots/seed{seed}"
    argv = [
        *("--root", "my data", "--seed", str(seed), "--trainer", method),
        *("--dataset-config-file", f"configs/datasets/{name}.yaml"),
        *(f"--config-file=configs/trainers/{method}/mini.yaml", "--output-dir", folder),
        *("OPTIM.MAX_EPOCH", "7", "DATASET.NUM_SHOTS", str(shots)),
    ]
    fields = {"argv": argv, **fields}
    return save(folder, method=method, dataset=dataset, shots=shots, seed=seed, **fields)


def printed_commands(capsys, *args):
    assert main([*map(str, args), "--commands"]) == 0
    return capsys.readouterr().out.splitlines()


def test_commands_make_what_is_missing(save, tmp_path, capsys):
    for dataset, name in (("Digits", "digits"), ("DTD", "dtd")):
        for seed in (1, 2):
            save_run(save, "APD", dataset, seed=seed, name=name)
    save_run(save, "CoOp")
    assert printed_commands(capsys, tmp_path) == [
        "python train.py --root 'my data' --seed "
        f"{seed} --trainer CoOp --dataset-config-file configs/datasets/{name}.yaml --config-file "
        f"configs/trainers/CoOp/mini.yaml --output-dir output/{name}/CoOp/mini_16shots/seed{seed} "
        "OPTIM.MAX_EPOCH 7 DATASET.NUM_SHOTS 16"
        for name, seed in (("dtd", 1), ("dtd", 2), ("digits", 2))
    ]


def test_commands_make_tasks_of_a_data_set(save, tmp_path, capsys):
    def run_on(method, part):
        folder = f"output/food{f'+{part}-2' if part else ''}/{method}/mini_16shots/seed1"
        argv = ["--trainer", method, "--dataset-config-file", "configs/datasets/food.yaml"]
        argv += ["--output-dir", folder, *(["DATASET.CLASSES", f"{part}/2/0"] if part else [])]
        name = f"Food {part}/2" if part else "Food"
        save(folder, method=method, dataset=name, argv=argv)

    for part in (1, 2, 0):
        run_on("APD", part)
    run_on("CoOp", 1)
    assert printed_commands(capsys, tmp_path) == [
        "python train.py --seed 1 --trainer CoOp --dataset-config-file configs/datasets/food.yaml "
        f"--output-dir output/food{folder}/CoOp/mini_16shots/seed1{keys}"
        for folder, keys in (("", ""), ("+2-2", " DATASET.CLASSES 2/2/0"))
    ]


def test_commands_say_where_schedules_may_differ(save, tmp_path, capsys):
    for shots in (1, 16):
        save_run(save, "APD", shots=shots)
    save_run(save, "CoOp", shots=16)
    comment, command = printed_commands(capsys, tmp_path)
    assert comment.startswith("# from a run with 16 shots:")
    assert "--output-dir output/digits/CoOp/mini_1shots/seed1 " in command
    assert command.endswith("DATASET.NUM_SHOTS 1")


@pytest.mark.parametrize(("lacking", "nearest"), [(2, "1 shot"), (8, "4 shots"), (32, "16 shots")])
def test_a_run_of_the_nearest_shots_is_copied(save, tmp_path, capsys, lacking, nearest):
    for shots in (1, 4, 16, lacking):
        save_run(save, "APD", shots=shots)
    for shots in (1, 4, 16):
        save_run(save, "CoOp", shots=shots)
    comment, command = printed_commands(capsys, tmp_path)
    assert comment.startswith(f"# from a run with {nearest}:")
    assert command.endswith(f"DATASET.NUM_SHOTS {lacking}")


def test_a_run_of_the_same_shots_is_copied_before_one_of_the_same_data(save, tmp_path, capsys):
    for dataset, name, shots in (
        ("DTD", "dtd", 4),
        ("Digits", "digits", 1),
        ("Digits", "digits", 4),
    ):
        save_run(save, "APD", dataset, shots, name=name)
    save_run(save, "CoOp", "DTD", 4, name="dtd")
    save_run(save, "CoOp", "Digits", 1)
    (line,) = printed_commands(capsys, tmp_path)
    assert "output/digits/CoOp/mini_4shots/seed1 " in line


def test_commands_that_nothing_tells_are_comments(save, tmp_path, capsys):
    save_run(save, "CoOp", argv=None)
    for seed in (1, 2):
        save_run(save, "APD", seed=seed)
    (line,) = printed_commands(capsys, tmp_path)
    assert line == "# CoOp, Digits, 16 shots, seed 2: no similar run of this row knows its command"


def test_a_folder_that_names_no_seed_is_not_used_twice(save, tmp_path, capsys):
    save_run(save, "CoOp", argv=["--output-dir", "mine"])
    for seed in (1, 2):
        save_run(save, "APD", seed=seed)
    assert printed_commands(capsys, tmp_path) == [
        "# give it another --output-dir: this one holds another run",
        "python train.py --seed 2 --output-dir mine",
    ]


def test_one_zero_shot_run_is_enough_for_all_seeds_and_shots(save, tmp_path, capsys):
    for shots in (1, 2):
        for seed in (1, 2):
            save_run(save, "APD", shots=shots, seed=seed)
    save_run(save, "ZeroshotCLIP", shots=2, trainable_parameters=0)
    assert printed_commands(capsys, tmp_path) == ["# nothing is missing"]
    assert main([str(tmp_path), "--table", "few-shot"]) == 0
    assert "n = 1" not in capsys.readouterr().out


def test_a_missing_zero_shot_run_is_missing_once(save, tmp_path):
    for seed in (1, 2):
        for dataset in ("Digits", "DTD"):
            save(f"APD/{dataset}/{seed}", method="APD", dataset=dataset, seed=seed)
    save("zero", method="ZeroshotCLIP", dataset="Digits", trainable_parameters=0, seed=1)
    for table in methods(load_runs([tmp_path])):
        assert [(m.place.dataset, m.seed) for m in table.missing] == [("DTD", 1)]


def test_nothing_is_missing(save, tmp_path, capsys):
    save_run(save)
    assert printed_commands(capsys, tmp_path) == ["# nothing is missing"]


# -- formats ---------------------------------------------------------------------------------------


@pytest.fixture
def rich(save, tmp_path):
    """Two data sets with seeds, flags, missing runs, differences and characters to escape."""
    for seed, shift in ((1, 0), (2, 1)):
        save_verdicts(save, "CoOp", [0] * (20 + shift) + [1] * (50 - shift) + [-1] * 30, seed)
        save_verdicts(save, "APD", [0] * (44 + shift) + [1] * (50 - shift) + [-1] * 6, seed)
        save(f"d{seed}", dataset="A_B & <C>", seed=seed, robust=30.0 + seed)
    flags = {"zero-gradients": "on 3.0 % of {images} | all_of_them"}
    evaluations = [record("clean", 95.0, total=100), record("pgd-100", 5.0, THREAT, total=100)]
    evaluations[1]["flags"] = flags
    save(method="VPT_1", evaluations=evaluations)
    return tmp_path


def write_all(folder, *options):
    styles = {"markdown": "md", "latex": "tex", "csv": "csv", "json": "json"}
    paths = {option: folder / f"table.{suffix}" for option, suffix in styles.items()}
    files = [item for option, path in paths.items() for item in (f"--{option}", str(path))]
    assert main([str(folder), *options, *files]) == 0
    return {path.suffix[1:]: path.read_text(encoding="utf-8") for path in paths.values()}


@pytest.mark.parametrize("suffix", ["md", "tex", "csv", "json"])
def test_golden_files(rich, suffix):
    check_golden(f"formats.{suffix}", write_all(rich, "--baseline", "CoOp")[suffix].rstrip("\n"))


def test_golden_terminal(rich, capsys):
    assert main([str(rich), "--baseline", "CoOp"]) == 0
    check_golden("formats.txt", capsys.readouterr().out.rstrip("\n"))


def test_golden_html(rich):
    tables = methods(load_runs([rich]))
    text = "\n".join(table.format("html") for table in tables)
    check_golden("formats.html", text)
    page = ElementTree.fromstring(f"<div>{text}</div>")
    assert page.find(".//caption").text == "clean (%), 16 shots, mini"
    assert "A_B & <C>" in [cell.text for cell in page.iter("th")]


def test_latex_compiles(rich, tmp_path):
    if not shutil.which("pdflatex"):
        pytest.skip("needs pdflatex")
    table = write_all(rich, "--baseline", "CoOp")["tex"]
    (tmp_path / "page.tex").write_text(
        r"\documentclass{article}\usepackage{booktabs}\begin{document}" + table + r"\end{document}"
    )
    command = ["pdflatex", "-interaction=batchmode", "-halt-on-error", "page.tex"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True).returncode == 0


def test_names_cannot_be_html_or_markup_in_markdown(save, tmp_path):
    name = "<script>alert(1)</script> [a](javascript:b) `c` **d** | e &lt; \\"
    save(method=name)
    (table,) = methods(load_runs([tmp_path]))
    row = table.format("pipe").splitlines()[-1]
    assert "<" not in row and "&lt;script&gt;" in row and "&amp;lt;" in row
    for markup in ("[", "`", "*", "\\"):
        assert row.count(f"\\{markup}") == name.count(markup)
    assert row.count("|") - row.count("\\|") == len(table.rows[0]) + 1


def test_an_unknown_style_is_named(save, tmp_path):
    save()
    (table,) = methods(load_runs([tmp_path]))
    with pytest.raises(Exception, match="style tex: use simple, pipe"):
        table.format("tex")


def test_runs_as_a_module(save):
    command = [sys.executable, "-W", "error", "-m", "apd.tables.command", str(save())]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "APD" in done.stdout


# -- differences over seeds ------------------------------------------------------------------------


def save_seeds(save, dataset="Digits", apart=(2.0, 5.0, -1.0)):
    for seed, difference in enumerate(apart, start=1):
        base = 50.0 + 10 * seed  # varies far more than the differences
        save(f"CoOp/{dataset}/{seed}", method="CoOp", dataset=dataset, seed=seed, clean=base)
        save(f"APD/{dataset}/{seed}", dataset=dataset, seed=seed, clean=base + difference)


def test_the_interval_over_seeds_is_that_of_a_paired_t_test(save, tmp_path, capsys):
    from scipy.stats import ttest_rel

    save_seeds(save)
    path = tmp_path / "t.json"
    options = ("--baseline", "CoOp", "--interval", "seeds", "--json", str(path))
    assert main([str(tmp_path), *options]) == 0
    out = capsys.readouterr().out
    (table,) = json.loads(path.read_text())["tables"]
    cell = table["rows"][1]["clean (%)"]
    expected = ttest_rel([62, 75, 79], [60, 70, 80]).confidence_interval()
    assert cell["interval"] == pytest.approx(list(expected), abs=1e-5)
    assert cell["difference"] == 2 and table["intervals_over"] == "seeds"
    assert f"(+2.0 [{expected.low:+.1f}, {expected.high:+.1f}])" in out
    assert "its 95 % interval over seeds (Student's t on the differences of equal seeds" in out


def test_an_averages_interval_over_seeds_is_of_the_seeds_averages(save, tmp_path):
    save_seeds(save, "A")
    save_seeds(save, "B", apart=(4.0, -5.0, 1.0))
    tables = compare(methods(load_runs([tmp_path])), "CoOp", "seeds")
    low, high = tables[0].rows[1]["average"].comparison.interval  # of +3, 0, 0
    half = 4.302653 * stdev([3, 0, 0]) / 3**0.5  # t of 2 degrees of freedom
    assert (low, high) == pytest.approx((1 - half, 1 + half), abs=1e-5)


def test_without_equal_seeds_there_is_no_interval_over_seeds(save, tmp_path):
    save_seeds(save)
    (tmp_path / "CoOp/Digits/3/results.json").unlink()
    (table,) = compare(methods(load_runs([tmp_path])), "CoOp", "seeds")
    assert table.rows[1]["clean (%)"].comparison.interval is None
    assert "interval over" not in table.format()


def test_the_foot_says_what_the_interval_over_images_leaves_out(save, tmp_path, capsys):
    for seed in (1, 2):
        save_verdicts(save, "CoOp", [0, 1, 1, 0], seed)
        save_verdicts(save, "APD", [0, 1, 0, 0], seed)
    assert main([str(tmp_path), "--baseline", "CoOp"]) == 0
    out = capsys.readouterr().out
    assert "its 95 % interval over test images (paired bootstrap; verdicts are averaged over" in out


def test_an_interval_needs_a_baseline_or_an_ablation(save, tmp_path, capsys):
    save_seeds(save)
    assert "give --baseline too" in error_of(capsys, tmp_path, "--interval", "seeds")
    for seed in (1, 2):
        for tau in (1.0, 2.0):
            config = {"TRAINER": {"APD": {"TAU": tau}}}
            save(f"abl/{tau}/{seed}", seed=seed, clean=80.0 + tau * seed, config=config)
    assert main([str(tmp_path / "abl"), "--interval", "seeds"]) == 0
    assert "over seeds" in capsys.readouterr().out


# -- differences over data sets --------------------------------------------------------------------


def test_an_average_has_the_interval_and_the_paired_test_over_data_sets(save, tmp_path, capsys):
    apart = {"A": 4.0, "B": 3.0, "C": -1.0, "D": 2.0, "E": 5.0}
    for name, difference in apart.items():
        for seed, shift in ((1, 0.5), (2, -0.5)):
            save(f"CoOp/{name}/{seed}", method="CoOp", dataset=name, seed=seed, clean=50.0)
            clean = 50 + difference + shift
            save(f"APD/{name}/{seed}", dataset=name, seed=seed, clean=clean)
    path = tmp_path / "table.json"
    assert main([str(tmp_path), "--baseline", "CoOp", "--json", str(path)]) == 0
    out = capsys.readouterr().out
    clean, robust = json.loads(path.read_text())["tables"]
    (apd,) = (row for row in clean["rows"] if row["method"] == "APD")
    found, values = apd["average"]["over_sets"], list(apart.values())
    flips = [abs(sum(map(mul, signs, values))) for signs in product((1, -1), repeat=5)]
    assert found["p"] == sum(flip >= sum(values) for flip in flips) / len(flips) == 4 / 32
    half = 2.776445 * stdev(values) / 5**0.5  # t of 4 degrees of freedom
    assert (found["low"], found["high"]) == pytest.approx((2.6 - half, 2.6 + half), abs=1e-5)
    assert (found["sets"], found["wins"], found["losses"]) == (5, 4, 1)
    assert f"(+2.6; over sets [{2.6 - half:+.1f}, {2.6 + half:+.1f}], p = 0.125)" in out
    assert "a paired sign-flip test over data sets" in out
    assert apd["A"]["over_sets"] is None
    (apd,) = (row for row in robust["rows"] if row["method"] == "APD")
    assert apd["average"]["over_sets"]["p"] == 1  # no difference anywhere
    assert found["p_holm"] is None  # one test a column


def test_p_values_of_several_rows_are_adjusted_by_holm(save, tmp_path, capsys):
    for number, name in enumerate("ABCDE"):
        save(f"CoOp/{name}", method="CoOp", dataset=name, clean=50.0)
        save(f"APD/{name}", dataset=name, clean=52.0 + number)
        save(f"APT/{name}", method="APT", dataset=name, clean=49.0 + number)
    path = tmp_path / "table.json"
    assert main([str(tmp_path), "--baseline", "CoOp", "--json", str(path)]) == 0
    clean, _ = json.loads(path.read_text())["tables"]
    cells = {row["method"]: row["average"]["over_sets"] for row in clean["rows"]}
    apd, apt = cells["APD"], cells["APT"]
    assert (apd["p"], apd["p_holm"]) == (2 / 32, 4 / 32)  # the smaller one twice
    assert apt["p"] == apt["p_holm"] > 4 / 32
    out = " ".join(capsys.readouterr().out.split())
    assert "p = 0.062, by Holm 0.125)" in out and "by Holm: p adjusted for the tests of all" in out
