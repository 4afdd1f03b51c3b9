"""Tables of base-to-new and of transfer, from made-up results."""

import csv

import pytest
from sample_results import record

from apd.results.protocols import base_to_new, transfer
from apd.results.table import load_runs, main

ROBUST = "PGD-100 eps=2/255 (%)"
FROM = {"prompts_from": {"model_dir": "elsewhere", "epoch": None}}


def save_halves(save, method, seed, base, new, **fields):
    save(f"{method}/{seed}/base", method=method, seed=seed, subsample="base", clean=base[0],
         robust=base[1], **fields)  # fmt: skip
    save(f"{method}/{seed}/new", method=method, seed=seed, subsample="new", clean=new[0],
         robust=new[1], **FROM, **fields)  # fmt: skip


def test_base_to_new_has_the_harmonic_mean_of_the_means(save, tmp_path):
    save_halves(save, "APD", 1, (90.0, 40.0), (60.0, 0.0))
    save_halves(save, "APD", 2, (70.0, 60.0), (80.0, 0.0))
    save_halves(save, "CoOp", 1, (50.0, 10.0), (50.0, 30.0))
    coop, apd = base_to_new(load_runs([tmp_path]))
    assert (coop["method"], apd["method"], apd["dataset"]) == ("CoOp", "APD", "Digits")
    assert (apd["base clean (%)"], apd["new clean (%)"]) == ([90, 70], [60, 80])
    assert apd["H clean (%)"] == [pytest.approx(2 * 80 * 70 / 150)]
    assert apd[f"H {ROBUST}"] == [0]
    assert coop["H clean (%)"] == [50] and coop[f"H {ROBUST}"] == [15]


def test_a_half_that_is_missing_leaves_no_harmonic_mean(save, tmp_path, capsys):
    save(subsample="base")
    (row,) = base_to_new(load_runs([tmp_path]))
    assert row["new clean (%)"] == [] and row["H clean (%)"] == []
    assert main([str(tmp_path), "--protocol", "base-to-new"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split()[:6] == [
        "Digits", "APD", "85.0", "-", "-", "42.0",
    ]  # fmt: skip


def test_base_to_new_of_several_datasets_has_a_row_each(save, tmp_path):
    for dataset, base in (("Digits", 90.0), ("Caltech101", 80.0)):
        save(f"{dataset}/base", dataset=dataset, subsample="base", clean=base)
    rows = base_to_new(load_runs([tmp_path]))
    assert [(row["dataset"], row["base clean (%)"]) for row in rows] == [
        ("Caltech101", [80.0]), ("Digits", [90.0]),
    ]  # fmt: skip


def save_transfer(save, method, source, targets, seed=1, **fields):
    save(f"{method}/{seed}/source", method=method, seed=seed, clean=source, **fields)
    for dataset, clean in targets.items():
        save(f"{method}/{seed}/{dataset}", method=method, seed=seed, dataset=dataset, clean=clean,
             **FROM, **fields)  # fmt: skip


def test_transfer_has_the_source_the_targets_and_their_average(save, tmp_path):
    save_transfer(save, "ZeroshotCLIP", 50.0, {"Letters": 30.0, "DTD": 10.0},
                  trainable_parameters=0, shots=0)  # fmt: skip
    save_transfer(save, "APD", 80.0, {"Letters": 60.0, "DTD": 20.0})
    save_transfer(save, "APD", 82.0, {"Letters": 50.0, "DTD": 20.0}, seed=2)
    rows = transfer(load_runs([tmp_path]))
    assert [(row["images"], row["method"]) for row in rows] == [
        ("clean", "ZeroshotCLIP"), ("clean", "APD"),
        ("PGD-100 eps=2/255", "ZeroshotCLIP"), ("PGD-100 eps=2/255", "APD"),
    ]  # fmt: skip
    assert rows[0]["average of targets (%)"] == [20]
    apd = rows[1]
    assert apd["Digits (source, %)"] == [80, 82] and apd["Letters (%)"] == [60, 50]
    assert apd["average of targets (%)"] == [pytest.approx((55 + 20) / 2)]


def test_a_target_that_is_missing_leaves_no_average(save, tmp_path):
    save_transfer(save, "APD", 80.0, {"Letters": 60.0, "DTD": 20.0})
    save_transfer(save, "CoOp", 70.0, {"Letters": 60.0})
    coop, apd = transfer(load_runs([tmp_path]))[:2]
    assert coop["DTD (%)"] == [] and coop["average of targets (%)"] == []
    assert apd["average of targets (%)"] == [40]


@pytest.mark.parametrize(
    "protocol, runs, why",
    [
        ("base-to-new", [{"subsample": "all"}], "there are runs of {'all'}"),
        ("transfer", [{"dataset": "A"}, {"dataset": "B"}], "here from: A, B"),
        ("transfer", [{"dataset": "A", **FROM}], "here from: none"),
        ("transfer", [{}, {"dataset": "B", "backbone": "ViT-B/32", **FROM}], "backbone"),
        ("transfer", [{}, {"dataset": "B", "threat": {"eps": 4}, **FROM}], "threat model"),
        ("transfer", [{}, {"dataset": "B", "shots": 1, **FROM}], "shots"),
        ("base-to-new", [{"subsample": "base"}, {"subsample": "base"}], "seed 1 twice"),
    ],
)
def test_runs_that_cannot_be_compared(save, tmp_path, capsys, protocol, runs, why):
    for i, fields in enumerate(runs):
        save(str(i), **fields)
    assert main([str(tmp_path), "--protocol", protocol]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and why in error


def test_a_protocols_table_is_written_too(save, tmp_path):
    save_halves(save, "APD", 1, (90.0, 40.0), (60.0, 20.0))
    table = tmp_path / "t.csv"
    assert main([str(tmp_path), "--protocol", "base-to-new", "--csv", str(table)]) == 0
    (row,) = csv.DictReader(table.open())
    assert row["dataset"] == "Digits" and float(row["H clean (%)"]) == pytest.approx(72)
    assert main([str(tmp_path), "--protocol", "transfer", "--plot", str(table)]) == 2


def test_flags_reach_a_protocols_table(save, tmp_path, capsys):
    evaluations = [{**record("clean", 80.0), "flags": {"random-logits": "other logits each time"}}]
    save(subsample="base", evaluations=evaluations)
    assert main([str(tmp_path), "--protocol", "base-to-new"]) == 0
    assert "random-logits: other logits each time" in capsys.readouterr().out
