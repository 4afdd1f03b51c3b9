"""The table of a search, from made-up results."""

import json

import pytest
from sample_results import THREAT, record

from apd.errors import UserError
from apd.results.runs import load_runs
from apd.tables.command import main
from apd.tables.kinds import fitting, search

CLEAN, ROBUST = "clean, validation images (%)", "PGD-100 eps=2/255, validation images (%)"


@pytest.fixture
def trial(save):
    """Function: save a method's trial on two data sets, its accuracies a point apart."""

    def trial(method, clean, robust, data_sets=("Pets", "Cars"), split="val", **keys):
        for shift, dataset in enumerate(data_sets):
            values = (("clean", clean, None), ("pgd-100", robust, THREAT))
            found = [
                record(name, value + shift, threat, split=split) for name, value, threat in values
            ]
            folder = f"{method}/{'-'.join(map(str, keys.values()))}/{dataset}"
            config = {
                "SEED": 1,
                "OPTIM": {"LR": 0.1, "MAX_EPOCH": 5, **keys},
                "OUTPUT_DIR": folder,
            }
            save(folder, method=method, dataset=dataset, evaluations=found, config=config)

    return trial


def rows(runs, *columns, **options):
    (table,) = search(runs, **options)
    return [
        tuple(row[name].mean if name in table.measured else row[name] for name in columns)
        for row in table.rows
    ], table


def test_all_trials_are_shown_and_the_best_mean_is_chosen(trial, tmp_path):
    trial("APD", 80.0, 30.0)
    trial("APD", 70.0, 50.0, LR=0.2)
    trial("APD", 60.0, 52.0, LR=0.3)
    for rate in (0.1, 0.5, 0.9):
        trial("CoOp", 50 + rate, 10.0, LR=rate)
    runs = load_runs([tmp_path])
    shown, table = rows(runs, "method", "trial", CLEAN, ROBUST, "mean", "chosen")
    assert shown == [
        ("CoOp", "default", 50.6, 10.5, pytest.approx(30.55), ""),
        ("CoOp", "OPTIM.LR=0.5", 51.0, 10.5, 30.75, ""),
        ("CoOp", "OPTIM.LR=0.9", 51.4, 10.5, pytest.approx(30.95), "yes"),
        ("APD", "default", 80.5, 30.5, 55.5, ""),
        ("APD", "OPTIM.LR=0.2", 70.5, 50.5, 60.5, "yes"),
        ("APD", "OPTIM.LR=0.3", 60.5, 52.5, 56.5, ""),
    ]
    assert table.extra["chosen"] == {"CoOp": {"OPTIM.LR": 0.9}, "APD": {"OPTIM.LR": 0.2}}
    assert table.notes[0] == (
        "chosen by the highest mean of clean and robust accuracy, validation images of Cars, Pets"
    )
    assert table.notes[1:3] == ["trials: 3 a method", "default of CoOp: OPTIM.LR=0.1"]
    assert fitting(runs) == ["search"]


def test_a_run_from_before_a_key_was_there_has_its_default(trial, tmp_path):
    trial("APD", 60.0, 40.0)
    trial("APD", 70.0, 50.0, CLIP_NORM=1.0)
    shown, table = rows(load_runs([tmp_path]), "trial", "chosen")
    assert shown == [("default", ""), ("OPTIM.CLIP_NORM=1.0", "yes")]
    assert table.extra["chosen"] == {"APD": {"OPTIM.CLIP_NORM": 1.0}}


def test_keys_that_a_method_does_not_read_make_no_trial(trial, tmp_path):
    for rate, theirs in ((0.1, 1.0), (0.2, 0.1)):
        trial("AdvIVLP", 60.0 + rate, 40.0, LR=rate)
        for path in tmp_path.glob(f"AdvIVLP/{rate}/*/results.json"):
            run = json.loads(path.read_text())
            run["config"]["TRAINER"] = {"APD": {"TAU": theirs}}
            path.write_text(json.dumps(run))
    _, table = rows(load_runs([tmp_path]), "trial")
    assert table.extra["chosen"] == {"AdvIVLP": {"OPTIM.LR": 0.2}}


def test_the_criterion_is_declared(trial, tmp_path, capsys):
    for rate, clean, robust in ((0.1, 80.0, 30.0), (0.2, 76.0, 40.0), (0.3, 50.0, 45.0)):
        trial("APD", clean, robust, LR=rate)

    def chosen(*options):
        path = tmp_path / "search.json"
        assert main([str(tmp_path), "--table", "search", *options, "--json", str(path)]) == 0
        (table,) = json.loads(path.read_text())["tables"]
        assert f"chosen by the {table['criterion']}" in capsys.readouterr().out
        return table["chosen"]["APD"]["OPTIM.LR"], table["criterion"]

    assert chosen() == (0.2, "highest mean of clean and robust accuracy")
    assert chosen("--criterion", "robust") == (0.3, "highest robust accuracy")
    assert chosen("--criterion", "robust", "--within", "5") == (
        0.2,
        "highest robust accuracy, "
        "of trials at most 5 points of clean accuracy below the method's best",
    )
    assert chosen("--criterion", "harmonic", "--within", "0")[0] == 0.1


def test_a_trial_that_lacks_a_run_is_not_chosen_and_the_budgets_are_compared(trial, tmp_path):
    trial("APD", 80.0, 30.0)
    trial("APD", 90.0, 60.0, LR=0.2, data_sets=("Pets",))
    trial("CoOp", 70.0, 10.0, data_sets=("Cars",))
    shown, table = rows(load_runs([tmp_path]), "method", "chosen")
    assert shown == [("CoOp", ""), ("APD", "yes"), ("APD", "")]
    assert table.extra["chosen"] == {"CoOp": None, "APD": {"OPTIM.LR": 0.1}}
    assert "trials: NOT as many for every method: CoOp=1, APD=2" in table.notes
    assert len(table.missing) == 2 and "missing: 2 runs" in table.format()


def test_test_images_never_choose(trial, tmp_path, capsys):
    trial("APD", 80.0, 30.0)
    trial("APD", 81.0, 30.0, split="test", LR=0.2)
    with pytest.raises(UserError, match="run it with TEST.SPLIT val"):
        search(load_runs([tmp_path]))
    assert main([str(tmp_path), "--table", "search"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_search_needs_an_attack(save, tmp_path):
    save(evaluations=[record("clean", 90.0, split="val")])
    with pytest.raises(UserError, match="a search needs an attack"):
        search(load_runs([tmp_path]))
