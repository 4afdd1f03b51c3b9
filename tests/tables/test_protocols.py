"""Tables of shots, protocols, ablations and costs, from made-up results."""

import pytest
from sample_results import check_golden, record, trained_elsewhere

from apd.tables.command import load_runs, main
from apd.tables.compare import compare
from apd.tables.kinds import ablation, base_to_new, cost, few_shot, fitting, methods, transfer

ROBUST = "PGD-100 eps=2/255 (%)"
OLD = {"prompts_from": {"model_dir": "gone", "epoch": None}}  # does not say what of
ZERO_SHOT = {"method": "ZeroshotCLIP", "trainable_parameters": 0}


def golden(name, tables):
    check_golden(name, "\n\n".join(table.format() for table in tables))


# -- few-shot --------------------------------------------------------------------------------------


def save_shots(save, methods=("CoOp", "APD"), data_sets=("Digits", "UCF101", "Caltech101")):
    for i, method in enumerate(methods):
        for j, dataset in enumerate(data_sets):
            for shots in (1, 16, -1):
                for seed in (1, 2):
                    clean = 50 + 10 * i + 5 * j + abs(shots) + seed
                    save(
                        f"{method}/{dataset}/{shots}/{seed}",
                        method=method,
                        dataset=dataset,
                        shots=shots,
                        seed=seed,
                        clean=clean,
                        robust=clean / 2,
                    )


def test_few_shot_has_a_table_for_each_data_set_and_their_average(save, tmp_path):
    save_shots(save)
    tables = few_shot(load_runs([tmp_path]))
    assert [table.title for table in tables[:4]] == [
        # as the papers order them, and then by name
        "clean (%), Caltech101, mini",
        "clean (%), UCF101, mini",
        "clean (%), Digits, mini",
        "clean (%), average of 3 data sets, mini",
    ]
    assert all(table.title.startswith(ROBUST) for table in tables[4:]) and len(tables) == 8
    coop, apd = tables[3].rows
    assert list(apd) == ["method", "1 shot", "16 shots", "all images"]
    assert coop["1 shot"].values == [57, 58] and apd["16 shots"].values == [82, 83]


def test_few_shot_averages_only_where_all_data_sets_are_there(save, tmp_path):
    save_shots(save, data_sets=("Digits", "DTD"))
    save_shots(save, ["CoOp"], data_sets=("EuroSAT",))
    average = few_shot(load_runs([tmp_path]))[3]
    coop, apd = average.rows
    assert coop["1 shot"].values == [52 + 5 / 3, 53 + 5 / 3]
    assert apd["1 shot"].values == [] and len(apd["1 shot"].missing) == 2
    assert len(average.missing) == 6


def test_zero_shot_stands_at_every_number_of_shots(save, tmp_path):
    save_shots(save, data_sets=("Digits",))
    for shots in (1, 16):  # a sweep makes it for each
        for seed in (1, 2):
            save(f"zero/{shots}/{seed}", shots=shots, seed=seed, clean=33.0, **ZERO_SHOT)
    clean, _ = few_shot(load_runs([tmp_path]))
    assert [cell.values for cell in list(clean.rows[0].values())[1:]] == [[33, 33]] * 3
    assert not clean.missing


def test_zero_shot_makes_nothing_missing_where_nobody_was_trained(save, tmp_path):
    save_shots(save, ["CoOp"], data_sets=("Digits",))
    for seed in (1, 2):
        save(f"CoOp/DTD/{seed}", method="CoOp", dataset="DTD", shots=16, seed=seed)
        for dataset in ("Digits", "DTD"):
            save(f"zero/{dataset}/{seed}", dataset=dataset, seed=seed, **ZERO_SHOT)
    dtd, *_ = few_shot(load_runs([tmp_path]))
    zero_shot, coop = dtd.rows
    assert "DTD" in dtd.title and not dtd.missing
    assert [len(cell.values) for cell in list(zero_shot.values())[1:]] == [0, 2, 0]
    assert [len(cell.values) for cell in list(coop.values())[1:]] == [0, 2, 0]


def test_few_shot_takes_one_backbone(save, tmp_path, capsys):
    save(shots=1)
    save(method="CoOp", shots=2, backbone="RN50")
    assert main([str(tmp_path), "--table", "few-shot"]) == 2
    assert "two values of backbone" in capsys.readouterr().err


def test_golden_few_shot(save, tmp_path):
    save_shots(save, data_sets=("Digits", "Caltech101"))
    (tmp_path / "APD/Digits/16/2/results.json").unlink()
    golden("few-shot.txt", few_shot(load_runs([tmp_path])))


# -- seeds -----------------------------------------------------------------------------------------


def elsewhere(seed, epochs, **config):
    """An evaluation of CoOp's prompts, which ``epochs`` trained."""
    more = trained_elsewhere("ImageNet", "CoOp", seed=seed)
    more["trained_on"]["settings"] = {"OPTIM.MAX_EPOCH": epochs, "TEST.FINAL_MODEL": "last_step"}
    config = {"SEED": seed, "OPTIM": {"MAX_EPOCH": 1}, **config}
    return {"method": "CoOp", "seed": seed, "config": config, **more}


def test_seeds_whose_prompts_were_trained_in_different_ways_make_no_mean(save, tmp_path, capsys):
    save("1", **elsewhere(1, epochs=5))
    save("2", **elsewhere(2, epochs=10))
    assert main([str(tmp_path)]) == 2
    assert "seeds of CoOp have different configs: OPTIM.MAX_EPOCH 5 and 10" in (
        capsys.readouterr().err
    )


def test_what_an_evaluation_says_of_a_training_is_not_what_its_prompts_had(save, tmp_path):
    save("1", **elsewhere(1, epochs=5))
    save("2", **elsewhere(2, epochs=5, OPTIM={"MAX_EPOCH": 7}))
    (row,) = methods(load_runs([tmp_path]))[0].rows
    assert len(row["clean (%)"].values) == 2


def test_seeds_whose_epochs_were_chosen_in_different_ways_make_no_mean(save, tmp_path, capsys):
    for seed, choice in ((1, "best_val"), (2, "last_step")):
        save(f"{seed}", seed=seed, config={"SEED": seed, "TEST": {"FINAL_MODEL": choice}})
    assert main([str(tmp_path)]) == 2
    assert "TEST.FINAL_MODEL 'best_val' and 'last_step'" in capsys.readouterr().err


# -- base-to-new -----------------------------------------------------------------------------------


def save_halves(save, method, seed, base, new, **fields):
    dataset = fields.get("dataset", "Digits")
    folder = f"{method}/{dataset}/{seed}"
    elsewhere = trained_elsewhere(dataset, method, "base", seed=seed)
    for half, (clean, robust), more in (("base", base, {}), ("new", new, elsewhere)):
        save(
            f"{folder}/{half}",
            method=method,
            seed=seed,
            subsample=half,
            clean=clean,
            robust=robust,
            **more,
            **fields,
        )


def test_harmonic_means_have_no_interval_but_a_difference(save, tmp_path):
    for dataset in ("A", "B"):
        save_halves(save, "APD", 1, (90.0, 40.0), (60.0, 20.0), dataset=dataset)
        save_halves(save, "CoOp", 1, (50.0, 10.0), (50.0, 30.0), dataset=dataset)
    tables = compare(base_to_new(load_runs([tmp_path])), "CoOp")
    harmonic = tables[-1].rows[1]["H clean (%)"].comparison
    assert harmonic.difference == pytest.approx(22) and harmonic.over_sets is None
    assert harmonic.interval is None
    assert tables[-1].rows[1]["base clean (%)"].comparison.over_sets.wins == 2
    assert tables[0].rows[1]["base clean (%)"].comparison.over_sets is None


def test_base_to_new_has_the_harmonic_mean_of_the_means(save, tmp_path):
    save_halves(save, "APD", 1, (90.0, 40.0), (60.0, 0.0))
    save_halves(save, "APD", 2, (70.0, 60.0), (80.0, 0.0))
    save_halves(save, "CoOp", 1, (50.0, 10.0), (50.0, 30.0))
    (table,) = base_to_new(load_runs([tmp_path]))
    coop, apd = table.rows
    assert (coop["method"], apd["method"], "Digits" in table.title) == ("CoOp", "APD", True)
    assert apd["base clean (%)"].values == [90, 70] and apd["new clean (%)"].values == [60, 80]
    assert apd["H clean (%)"].values == [pytest.approx(2 * 80 * 70 / 150)]
    assert apd["H clean (%)"].n == 2  # of two seeds, though it is one number
    assert apd[f"H {ROBUST}"].values == [0]
    assert coop["H clean (%)"].values == [50] and coop[f"H {ROBUST}"].values == [15]


def test_the_averages_h_is_that_of_the_averages(save, tmp_path):
    save_halves(save, "APD", 1, (90.0, 40.0), (60.0, 10.0))
    save_halves(save, "APD", 1, (70.0, 20.0), (80.0, 30.0), dataset="DTD")
    *each, average = base_to_new(load_runs([tmp_path]))
    (row,) = average.rows
    assert len(each) == 2 and "average of 2 data sets" in average.title
    assert row["base clean (%)"].values == [80] and row["new clean (%)"].values == [70]
    assert row["H clean (%)"].values == [pytest.approx(2 * 80 * 70 / 150)]


def test_a_half_that_nobody_has_leaves_no_harmonic_mean(save, tmp_path, capsys):
    save(subsample="base")
    (table,) = base_to_new(load_runs([tmp_path]))
    (row,) = table.rows
    assert row["new clean (%)"].values == [] and row["H clean (%)"].values == []
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split() == [
        "APD",
        "85.0",
        "-",
        "-",
        "42.0",
        "-",
        "-",
    ]


def test_flags_reach_the_harmonic_mean(save, tmp_path):
    flags = {"flags": {"random-logits": "other logits each time"}}
    save("base", subsample="base", evaluations=[record("clean", 80.0, **flags)])
    save(
        "new",
        subsample="new",
        evaluations=[record("clean", 80.0)],
        **trained_elsewhere(subsample="base"),
    )
    text = base_to_new(load_runs([tmp_path]))[0].format()
    row = next(line for line in text.splitlines() if line.startswith("APD"))
    assert row.split()[1:] == ["80.0", "†1", "80.0", "80.0", "†1"]  # one mark: H has it too
    assert text.endswith("†1 random-logits: other logits each time")


def test_golden_base_to_new(save, tmp_path):
    for dataset in ("Digits", "EuroSAT"):
        for seed in (1, 2):
            for i, method in enumerate(("CoOp", "APD")):
                halves = (90.0 + seed, 40.0 + 10 * i), (60.0, 20.0 - 5 * i)
                save_halves(save, method, seed, *halves, dataset=dataset)
    (tmp_path / "CoOp/EuroSAT/2/new/results.json").unlink()
    golden("base-to-new.txt", base_to_new(load_runs([tmp_path])))


# -- transfer --------------------------------------------------------------------------------------


def save_transfer(save, method, source, targets, seed=1, **fields):
    save(f"{method}/{seed}/source", method=method, seed=seed, clean=source, **fields)
    for dataset, clean in targets.items():
        save(
            f"{method}/{seed}/{dataset}",
            method=method,
            seed=seed,
            dataset=dataset,
            clean=clean,
            **{**trained_elsewhere(method=method, seed=seed), **fields},
        )


def test_transfer_has_the_source_the_targets_and_their_average(save, tmp_path):
    save_transfer(
        save, "ZeroshotCLIP", 50.0, {"Letters": 30.0, "DTD": 10.0}, trainable_parameters=0, shots=0
    )
    save_transfer(save, "APD", 80.0, {"Letters": 60.0, "DTD": 20.0})
    save_transfer(save, "APD", 82.0, {"Letters": 50.0, "DTD": 20.0}, seed=2)
    clean, robust = transfer(load_runs([tmp_path]))
    assert clean.title == "clean (%), transfer from Digits, 16 shots, mini"
    assert robust.title.startswith(ROBUST)
    zero_shot, apd = clean.rows
    assert list(apd) == ["method", "Digits (source)", "DTD", "Letters", "average of targets"]
    assert zero_shot["average of targets"].values == [20]
    assert apd["Digits (source)"].values == [80, 82] and apd["Letters"].values == [60, 50]
    assert apd["average of targets"].values == [40, 35]


def test_a_target_that_is_missing_leaves_no_average(save, tmp_path):
    save_transfer(save, "APD", 80.0, {"Letters": 60.0, "DTD": 20.0})
    save_transfer(save, "CoOp", 70.0, {"Letters": 60.0})
    coop, apd = transfer(load_runs([tmp_path]))[0].rows
    assert coop["DTD"].values == coop["average of targets"].values == [] and coop["DTD"].missing
    assert apd["average of targets"].values == [40]


def test_golden_transfer(save, tmp_path):
    save_transfer(save, "APD", 80.0, {"Letters": 60.0, "DTD": 20.0})
    save_transfer(save, "CoOp", 70.0, {"Letters": 60.0})
    golden("transfer.txt", transfer(load_runs([tmp_path])))


def test_targets_alone_are_a_transfer_from_what_their_prompts_were_trained_on(save, tmp_path):
    for dataset in ("Letters", "DTD"):
        save(dataset, dataset=dataset, **trained_elsewhere("ImageNet"))
    runs = load_runs([tmp_path])
    assert fitting(runs) == ["transfer", "cost"]
    clean, _ = transfer(runs)
    assert "transfer from ImageNet" in clean.title
    assert list(clean.rows[0]) == ["method", "DTD", "Letters", "average of targets"]
    clean, _ = methods(runs)
    assert "on DTD, Letters: prompts trained on ImageNet" in clean.format()
    assert "prompts trained on" in few_shot(runs)[0].format()


# -- what prompts were trained on ------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields, said",
    [
        ({}, "Digits, new classes"),  # trained on the new classes: no prompts of the base run
        (trained_elsewhere(), "Digits, all classes"),
        (trained_elsewhere("DTD", subsample="base"), "DTD, base classes"),
    ],
)
def test_new_classes_need_the_prompts_of_the_base_classes(save, tmp_path, capsys, fields, said):
    save("base", subsample="base")
    new = save("new", subsample="new", **fields)
    assert main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert f"{new.resolve()}: its prompts were trained on {said}; base-to-new" in error
    assert error.count("\n") == 1


def test_an_evaluation_stands_at_the_shots_and_seed_of_its_prompts(save, tmp_path):
    """Whatever its own command said: CoOp's scripts give an evaluation no shots."""
    for seed in (1, 2):
        save(f"base{seed}", subsample="base", shots=16, seed=seed)
        elsewhere = trained_elsewhere(subsample="base", shots=16, seed=seed)
        save(f"new{seed}", subsample="new", shots=-1, seed=7, clean=60.0 + seed, **elsewhere)
    (table,) = base_to_new(load_runs([tmp_path]))
    assert table.rows[0]["new clean (%)"].values == [61, 62] and not table.missing


def test_both_halves_are_of_the_same_prompts(save, tmp_path, capsys):
    base = save("base", subsample="base", prompts_sha256="a" * 64)
    elsewhere = trained_elsewhere(subsample="base")
    new = save("new", subsample="new", prompts_sha256="b" * 64, **elsewhere)
    assert main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert f"{base.resolve()} and {new.resolve()} are about different prompts of APD" in error
    save("new", subsample="new", prompts_sha256="a" * 64, **elsewhere)
    assert main([str(tmp_path)]) == 0


def test_what_is_not_known_of_older_evaluations_is_told(save, tmp_path):
    save("base", subsample="base")
    new = save("new", subsample="new", **OLD)
    (table,) = base_to_new(load_runs([tmp_path]))
    assert "not known what these prompts were trained on" in table.format()
    assert str(new.resolve()) in table.format()
    source = {"prompts_from": {"model_dir": str(tmp_path / "base"), "epoch": None}}
    save("new", subsample="new", **source)
    (table,) = base_to_new(load_runs([tmp_path]))
    assert "not known" not in table.format()


def test_prompts_of_two_trainings_are_not_compared_on_one_data_set(save, tmp_path, capsys):
    save("APD", dataset="DTD")
    save("CoOp", method="CoOp", dataset="DTD", **trained_elsewhere("ImageNet", "CoOp"))
    assert main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "two values of what prompts tested on DTD (all classes) were trained on: DTD" in error


# -- ablation --------------------------------------------------------------------------------------


def save_config(save, name, clean, seed=1, dataset="Digits", **changed):
    values = {"TAU": 1.0, "BETA": 0.0, **changed}
    config = {
        "OUTPUT_DIR": f"output/{name}",
        "SEED": seed,
        "DATASET": {"NAME": dataset},
        "TRAINER": {"APD": values},
    }
    save(f"{dataset}/{name}/{seed}", clean=clean, seed=seed, dataset=dataset, config=config)


def test_an_ablations_rows_are_what_differs_from_the_usual_config(save, tmp_path):
    save_config(save, "+TAU=2.0", 82.0, TAU=2.0)
    save_config(save, "+TAU=4.0", 84.0, TAU=4.0)
    save_config(save, "+BETA=1.0", 70.0, BETA=1.0)
    save_config(save, "", 80.0)
    save("CoOp", method="CoOp")  # has one config
    (table,) = ablation(load_runs([tmp_path]))
    default, *others = table.rows
    assert default["config"] == "default" and default["clean (%)"].comparison is None
    assert [(row["config"], row["clean (%)"].comparison.difference) for row in others] == [
        ("APD.BETA=1.0", -10),
        ("APD.TAU=2.0", 2),
        ("APD.TAU=4.0", 4),
    ]
    assert list(table.notes) == ["default: APD.BETA=0.0, APD.TAU=1.0"]
    assert table.title == "APD, Digits, 16 shots, mini"


def test_of_two_configs_the_default_has_the_shorter_name(save, tmp_path):
    save_config(save, "a+TAU=2.0", 82.0, TAU=2.0)
    save_config(save, "b", 80.0)
    (table,) = ablation(load_runs([tmp_path]))
    assert [row["config"] for row in table.rows] == ["default", "APD.TAU=2.0"]


def test_an_ablation_without_its_default_has_no_differences(save, tmp_path):
    for key in ("TAU", "BETA", "LAMBDA"):
        changed = {"LAMBDA": 0.5, key: 3.0}
        save_config(save, key, 80.0, **changed)
    (table,) = ablation(load_runs([tmp_path]))
    assert [row["config"] for row in table.rows] == [
        "APD.BETA=3.0",
        "APD.LAMBDA=3.0",
        "APD.TAU=3.0",
    ]
    assert table.baseline is None


def test_an_ablation_may_not_vary_the_backbone(save, tmp_path, capsys):
    save_config(save, "one", 80.0)
    save("other", backbone="RN50", config={"TRAINER": {"APD": {"TAU": 2.0}}})
    assert main([str(tmp_path), "--table", "ablation"]) == 2
    assert "two values of backbone" in capsys.readouterr().err


def test_golden_ablation(save, tmp_path):
    for dataset in ("Digits", "DTD"):
        for seed in (1, 2):
            save_config(save, "default", 80.0 + seed, seed, dataset)
            save_config(save, "TAU=2.0", 82.0, seed, dataset, TAU=2.0)
            save_config(save, "BETA=1.0", 70.0, seed, dataset, BETA=1.0)
    (tmp_path / "DTD/TAU=2.0/2/results.json").unlink()
    golden("ablation.txt", ablation(load_runs([tmp_path])))


# -- cost ------------------------------------------------------------------------------------------


def save_costs(save):
    for shots in (1, 2):
        for seed in (1, 2):
            save(
                f"{shots}/{seed}",
                shots=shots,
                seed=seed,
                epochs=50,
                peak_memory=2**30 * shots,
                train_seconds=20.0 * shots + seed,
                seconds=30.0 * shots,
            )
    save("old", method="CoOp", shots=1, config={"OPTIM": {"MAX_EPOCH": 10}})
    save("zero", train_seconds=0, seconds=9.0, epochs=0, **ZERO_SHOT)


def test_cost_is_told_by_method_and_shots(save, tmp_path):
    save_costs(save)
    (table,) = cost(load_runs([tmp_path]))
    zero_shot, coop, _, apd, apd_2 = table.rows
    assert (zero_shot["method"], zero_shot["shots"], zero_shot["parameters"]) == (
        "ZeroshotCLIP",
        "-",
        0,
    )
    assert zero_shot["training (s)"].values == [] and zero_shot["evaluation (s)"].values == [9]
    assert coop["seconds per epoch"].values == [2]  # of results that do not tell their epochs
    assert coop["peak memory (MiB)"].values == []
    assert apd_2["shots"] == "2 shots" and apd_2["seconds per epoch"].values == [0.82, 0.84]
    assert apd["peak memory (MiB)"].values == [1024, 1024]
    assert apd["evaluation (s)"].values == [9, 8]


def test_golden_cost(save, tmp_path):
    save_costs(save)
    golden("cost.txt", cost(load_runs([tmp_path])))


def test_what_a_run_did_not_tell_is_not_missing(save, tmp_path):
    save_costs(save)
    (table,) = cost(load_runs([tmp_path]))
    old, missing = (line for line in table.format().splitlines() if line.startswith("CoOp"))
    assert old.split()[-1] == "-" and missing.split()[-1] == "missing"


# -- which one -------------------------------------------------------------------------------------


def test_the_table_fits_the_runs(save, tmp_path):
    def names(**fields):
        save(fields.pop("folder"), **fields)
        return fitting(load_runs([tmp_path]))

    assert names(folder="one") == ["methods", "cost"]
    assert names(folder="data", method="CoOp", dataset="DTD") == ["methods", "cost"]
    assert names(folder="shots", shots=4) == ["few-shot", "cost"]


def test_the_protocols_fit_their_runs(save, tmp_path):
    save_transfer(save, "a/APD", 80.0, {"DTD": 20.0})
    save_halves(save, "b/APD", 1, (90.0, 40.0), (60.0, 10.0))
    save_config(save, "one", 80.0)
    save_config(save, "two", 80.0, TAU=2.0)
    found = [fitting(load_runs([tmp_path / name])) for name in ("a", "b", "Digits")]
    assert found == [["transfer", "cost"], ["base-to-new"], ["ablation"]]


def test_runs_of_several_protocols_are_refused(save, tmp_path, capsys):
    save("all")
    save_halves(save, "CoOp", 1, (90.0, 40.0), (60.0, 10.0))
    assert main([str(tmp_path)]) == 2
    assert "there are runs of {'all'}" in capsys.readouterr().err


def test_the_table_that_fits_is_shown(save, tmp_path, capsys):
    save_shots(save)
    assert main([str(tmp_path)]) == 0
    assert "average of 3 data sets" in capsys.readouterr().out


@pytest.mark.parametrize(
    "kind, runs, why",
    [
        ("base-to-new", [{"subsample": "all"}], "there are runs of {'all'}"),
        ("transfer", [{"dataset": "A"}, {"dataset": "B"}], "here from: A; B"),
        ("transfer", [{"dataset": "A", **OLD}], "here from: none"),
        (
            "transfer",
            [{}, {"dataset": "B", "backbone": "ViT-B/32", **trained_elsewhere()}],
            "backbone",
        ),
        (
            "transfer",
            [{}, {"dataset": "B", "threat": {"alpha": 4}, **trained_elsewhere()}],
            "threat model",
        ),
        ("transfer", [{}, {"dataset": "B", **trained_elsewhere(shots=1)}], "shots"),
        ("transfer", [{}, {"dataset": "B", "host": "dassl 0.6", **trained_elsewhere()}], "host"),
        ("base-to-new", [{"subsample": "base"}, {"subsample": "base"}], "seed 1 twice"),
        ("few-shot", [{"shots": 1}, {"shots": 2, "subsample": "base"}], "subsample"),
        ("ablation", [{}, {"seed": 2}], "one each"),
        ("cost", [{}, {"seed": 2, "host": "dassl 0.6"}], "host"),
    ],
)
def test_runs_that_cannot_be_compared(save, tmp_path, capsys, kind, runs, why):
    for i, fields in enumerate(runs):
        save(str(i), **fields)
    assert main([str(tmp_path), "--table", kind]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and why in error


# -- commands --------------------------------------------------------------------------------------


def test_what_is_evaluated_comes_after_what_is_trained(save, tmp_path, capsys):
    for method in ("CoOp", "APD"):
        for seed in (1, 2):
            for half, folder in (("base", "train_base"), ("new", "test_new")):
                run = f"digits/shots_16/{method}/mini/seed{seed}"
                argv = ["--seed", str(seed), "--output-dir", f"output/{folder}/{run}"]
                evaluation = ["--eval-only", "--model-dir", f"output/train_base/{run}"]
                save(
                    f"{method}/{seed}/{half}",
                    method=method,
                    seed=seed,
                    subsample=half,
                    argv=argv + (evaluation if half == "new" else []),
                    **(
                        trained_elsewhere(method=method, subsample="base", seed=seed)
                        if half == "new"
                        else {}
                    ),
                )
    for half in ("base", "new"):
        (tmp_path / f"CoOp/2/{half}/results.json").unlink()
    assert main([str(tmp_path), "--commands"]) == 0
    run = "digits/shots_16/CoOp/mini/seed2"
    assert capsys.readouterr().out.splitlines() == [
        f"python train.py --seed 2 --output-dir output/train_base/{run}",
        f"python train.py --seed 2 --output-dir output/test_new/{run} --eval-only "
        f"--model-dir output/train_base/{run}",
    ]


def test_a_targets_command_comes_from_another_target(save, tmp_path, capsys):
    for method, seeds in (("CoOp", [1]), ("APD", [1, 2])):
        for name, dataset in (("digits", "Digits"), ("letters", "Letters"), ("dtd", "DTD")):
            for seed in seeds:
                source = f"output/digits/{method}/mini_16shots/seed{seed}"
                target = f"output/evaluation/digits/{method}/mini_16shots/{name}/seed{seed}"
                learned = name == "digits"
                argv = ["--dataset-config-file", f"configs/datasets/{name}.yaml"]
                argv += ["--seed", str(seed), "--output-dir", source if learned else target]
                argv += [] if learned else ["--eval-only", "--model-dir", source]
                save(
                    f"{method}/{name}/{seed}",
                    method=method,
                    dataset=dataset,
                    seed=seed,
                    argv=argv,
                    **({} if learned else trained_elsewhere(method=method, seed=seed)),
                )
    (tmp_path / "CoOp/dtd/1/results.json").unlink()
    assert main([str(tmp_path), "--commands"]) == 0
    trained, *evaluated = capsys.readouterr().out.splitlines()

    def source(seed):
        return f"output/digits/CoOp/mini_16shots/seed{seed}"

    assert trained == (
        "python train.py --dataset-config-file configs/datasets/digits.yaml --seed 2 --output-dir "
        + source(2)
    )
    assert evaluated == [
        f"python train.py --dataset-config-file configs/datasets/{name}.yaml --seed {seed} "
        f"--output-dir output/evaluation/digits/CoOp/mini_16shots/{name}/seed{seed} --eval-only "
        f"--model-dir {source(seed)}"
        for name, seed in (("dtd", 1), ("dtd", 2), ("letters", 2))
    ]


def test_a_configs_command_comes_from_the_same_config(save, tmp_path, capsys):
    for tau in (1.0, 2.0):
        for seed in (1, 2, 3):
            argv = ["--seed", str(seed), "--output-dir", f"TAU={tau}/seed{seed}"]
            save(f"{tau}/{seed}", seed=seed, argv=argv, config={"TRAINER": {"APD": {"TAU": tau}}})
    (tmp_path / "2.0/2/results.json").unlink()
    assert main([str(tmp_path), "--commands"]) == 0
    assert capsys.readouterr().out == "python train.py --seed 2 --output-dir TAU=2.0/seed2\n"
