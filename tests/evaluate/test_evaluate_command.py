"""apd-eval, from finished runs to a table, figures and images."""

import json
import shutil
import subprocess
import sys

import pytest
import torch

from apd.results import read_results


@pytest.fixture(scope="module")
def runs(run, tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    for method in ("ZeroshotCLIP", "AdvIVLP", "APD"):
        assert run(method, root / method).code == 0
    return root


def records(run):
    return [json.loads(p.read_text())["record"] for p in (run / "evaluations").glob("*.json")]


def test_what_takes_seconds_to_import_is_imported_where_it_is_used():
    slow = "matplotlib", "ray", "scipy.stats", "sklearn", "tensorboard", "torchattacks"
    code = f"""
import sys
import apd, apd.evaluate.command, apd.train.command
apd.register()
apd.attacks.find_attack("autoattack", apd.attacks.ThreatModel("linf", 1, 1, 1))
print(*sorted({set(slow)!r} & sys.modules.keys()))"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "\n"


def test_several_runs_attacks_and_radii_in_one_call(runs, call, tmp_path):
    code, out, err = call(
        runs, "--attack", "fgsm,pgd-3", "--eps", "1,2", "--subset", 12, "--figures", tmp_path
    )
    assert (code, err) == (0, "")
    rows = [line.split() for line in out.splitlines() if "/255" in line and line[0] != "["]
    assert len(rows) == 3 * 2 * 2
    assert {row[0] for row in rows} == {"ZeroshotCLIP", "AdvIVLP", "APD"}
    assert all(row[6] == "12" for row in rows)
    made = {path.name for path in tmp_path.iterdir()}
    assert {"APD_seed1_examples.png", "APD_seed1_classes.png"} <= made
    assert "eps_pgd-3_linf_12_images.png" in made
    found = [r for r in records(runs / "APD") if r["threat_model"]["eps"] == 2.0]
    assert {r["threat_model"]["alpha"] for r in found if r["attack"] == "pgd-3"} == {1.0}
    assert all("flags" in r and r["images"] == {"count": 12, "seed": 0} for r in found)


def test_validation_images_are_evaluated_apart_from_the_test_images(runs, call):
    run = runs / "AdvIVLP"
    code, out, err = call(run, "--split", "val", "--attack", "pgd-3")
    assert (code, err) == (0, "")
    (row,) = [line for line in out.splitlines() if "/255" in line and line[0] != "["]
    assert "8 (val)" in row
    whole = [r for r in records(run) if r["attack"] == "pgd-3" and r["images"] == "all"]
    found = {(r["split"], r["total"]) for r in whole if r["threat_model"]["eps"] == 1}
    assert found == {("test", 20), ("val", 8)}


def test_the_runs_own_attack_is_found_again_and_its_results_stay(runs, call):
    before = (runs / "AdvIVLP" / "results.json").read_bytes()
    code, out, _ = call(runs / "AdvIVLP")
    robust = read_results(runs / "AdvIVLP")["evaluations"][1]
    assert code == 0 and f"{robust['accuracy']:.1f}" in out and "pgd-3" in out
    assert (runs / "AdvIVLP" / "results.json").read_bytes() == before


def test_a_run_on_upstream_dassl_is_evaluated_without_it(runs, call, tmp_path):
    """Upstream's config has the sections of its own trainers too."""
    shutil.copytree(runs / "AdvIVLP", run := tmp_path / "run")
    results = json.loads((run / "results.json").read_text())
    results["config"]["TRAINER"]["OTHER"] = {"CLASS_LR_MULTI": 10}
    (run / "results.json").write_text(json.dumps(results))
    assert call(run, "--attack", "pgd-2")[0] == 0
    results["config"]["TRAINER"]["APD"]["OTHER"] = 1
    (run / "results.json").write_text(json.dumps(results))
    code, _, err = call(run, "--attack", "pgd-2")
    assert code == 2 and "there is no key TRAINER.APD.OTHER" in err


def test_threat_models(runs, call):
    sources = ["white-box", "transfer:zeroshot", f"transfer:{runs / 'AdvIVLP'}", "adaptive"]
    code, _, err = call(runs / "APD", "--source", ",".join(sources), "--attack", "pgd-2")
    assert (code, err) == (0, "")
    found = [r["threat_model"] for r in records(runs / "APD") if r["attack"] == "pgd-2"]
    assert {threat["source"] for threat in found} == set(sources)


def test_half_precision_reports_changed_verdicts(runs, call):
    code, out, _ = call(runs / "APD", "--attack", "pgd-2", "--prec", "fp32,bf16")
    assert code == 0 and "in bf16 changes" in out and "of 20 verdicts" in out


def test_adversarial_images_are_saved(runs, call, tmp_path):
    assert call(runs / "APD", "--attack", "pgd-2", "--save-adv", tmp_path)[0] == 0
    (folder,) = tmp_path.iterdir()
    assert list(folder.glob("*.npz"))


@pytest.mark.parametrize("flags", [(), ("--shards", 2)], ids=["whole", "shards"])
def test_runs_with_the_same_predictions_share_saved_images(runs, call, tmp_path, inline, flags):
    """Each has verdicts of its own, and those of either are the other's."""
    folders = [shutil.copytree(runs / "AdvIVLP", tmp_path / name) for name in "ab"]
    for folder in folders:
        shutil.rmtree(folder / "evaluations")
    more = ("--attack", "pgd-2,fgsm", "--save-adv", tmp_path / "adv", *flags)
    code, out, err = call(*folders, *more)
    assert code == 0 and "error" not in err
    assert len([line for line in out.splitlines() if "/255" in line and line[0] != "["]) == 4
    first, second = (records(folder) for folder in folders)
    assert len(first) == 2 and first == second
    assert len(list((tmp_path / "adv").iterdir())) == 2
    assert all(list(folder.glob("*.npz")) for folder in (tmp_path / "adv").iterdir())
    for folder in folders:
        assert list(folder.glob("evaluations/shards/*-of-*")) == []


def test_prompts_that_were_trained_anew_are_not_evaluated_as_the_old_ones(run, call, tmp_path):
    trained, evaluated = tmp_path / "trained", tmp_path / "evaluated"
    assert run("CoOp", trained, "OPTIM.MAX_EPOCH", 1).code == 0
    assert run("CoOp", evaluated, flags=("--eval-only", "--model-dir", str(trained))).code == 0
    assert call(evaluated, "--attack", "fgsm")[0] == 0
    shutil.rmtree(trained)
    assert run("CoOp", trained, "OPTIM.MAX_EPOCH", 2).code == 0
    code, _, err = call(evaluated, "--attack", "pgd-2")
    assert code == 2 and len(err.splitlines()) == 1
    assert f"prompts in {trained} are not those that {evaluated}/results.json is about" in err
    assert len(records(evaluated)) == 2  # its own, and fgsm


def test_an_impossible_result_has_exit_code_1_and_its_flag_in_the_table(runs, call, tmp_path):
    """A stored accuracy is edited: these runs' attacks gain no image."""
    shutil.copytree(runs / "AdvIVLP", run := tmp_path / "run")
    assert call(run, "--attack", "pgd-2")[0] == 0
    for path in (run / "evaluations").glob("*.json"):
        found = json.loads(path.read_text())
        found["record"]["accuracy"] = 100.1
        path.write_text(json.dumps(found))
    code, out, _ = call(run, "--attack", "pgd-2")
    assert code == 1 and "robust-above-clean: more than on clean images" in out


def test_the_model_is_compiled_once_for_all_batch_sizes(runs, call, monkeypatch):
    """Compiling takes a minute: not here."""
    calls = []

    def compile(logits, dynamic):
        calls.append(dynamic)
        return logits

    monkeypatch.setattr(torch, "compile", compile)
    assert call(runs / "APD", "--attack", "pgd-2", "--compile")[0] == 0
    assert calls == [True]

    def broken(logits, dynamic):
        def run(images):
            raise RuntimeError("No working C++ compiler found\nin $CXX")

        return run

    monkeypatch.setattr(torch, "compile", broken)
    code, _, err = call(runs / "APD", "--attack", "pgd-2", "--compile")
    assert (code, err) == (2, "error: --compile: No working C++ compiler found in $CXX\n")


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--attack", "pdg-3"], "unknown attack"),
        (["--eps", "far"], "--eps: far is refused"),
        (["--source", "black-box"], "unknown source"),
        (["--source", "adaptive"], "teacher"),
        (["--source", "transfer:nowhere"], "no finished run"),
        (["--prec", "fp8"], "fp8"),
        (["--norm", "l2"], "--norm l2"),
        (["--root", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_are_told_in_one_line(runs, call, args, told):
    code, _, err = call(runs / "AdvIVLP", *args)
    assert code == 2 and told in err and err.count("\n") == 1 and err.startswith("error: ")


def test_train_py_takes_attacks(run, runs, tmp_path):
    of = ("--eval-only", "--model-dir", str(runs / "APD"), "--attack", "pgd-2,fgsm")
    result = run("APD", tmp_path, flags=of)
    assert (result.code, result.err) == (0, "")
    found = read_results(tmp_path)["evaluations"]
    assert [r["attack"] for r in found] == ["clean", "pgd-2", "fgsm"]
    assert run("APD", tmp_path / "x", flags=("--attack", "pdg-2")).code == 2
    assert run("APD", tmp_path / "x", "AT.TEST.EPS", None, flags=("--attack", "pgd-2")).code == 2
    assert not (tmp_path / "x").exists()
