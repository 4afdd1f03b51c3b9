"""The protocols' scripts, from their first line to their table, on the embedded default."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHORT = "OPTIM.MAX_EPOCH 1 AT.TEST.STEPS 1"


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    """Function: run a script; what it printed, and the folder of its runs."""
    folder = tmp_path_factory.mktemp("protocols")

    def script(name, *args, **environment):
        more = {"INSTALL": "no", "OUTPUT": str(folder / "output"), "OPTIONS": SHORT,
                "METHODS": "CoOp", "OMP_NUM_THREADS": "1"}  # fmt: skip
        result = subprocess.run(
            ["bash", f"scripts/{name}.sh", str(folder / "data"), *args], cwd=ROOT, text=True,
            capture_output=True, env=os.environ | more | environment,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr[-2000:]
        return result.stdout, folder / "output"

    return script


def cells(table, method):
    rows = (line.split() for line in table.splitlines() if not line.startswith("=="))
    return [row for row in rows if method in row]


def test_fewshot(script):
    printed, output = script("fewshot", "digits", "1 2", "1")
    assert [p.name for p in sorted((output / "digits/CoOp").iterdir())] == [
        "mini_1shots", "mini_2shots",
    ]  # fmt: skip
    tables = printed.split("method ")[1:]
    assert len(tables) == 2 and all(len(cells(table, "CoOp")) == 1 for table in tables)


def test_base_to_new(script):
    printed, _ = script("base2new", "digits", "2", "1")
    ((dataset, _, base, new, harmonic, *_),) = cells(printed.split("dataset ")[1], "CoOp")
    base, new, harmonic = float(base), float(new), float(harmonic)
    assert dataset == "Digits" and min(base, new) > 50
    assert harmonic == pytest.approx(2 * base * new / (base + new), abs=0.1)


@pytest.mark.parametrize(
    "name, target", [("cross_dataset", "Letters"), ("domain_shift", "RenderedDigits")]
)
def test_transfer(script, name, target):
    printed, output = script(name, "digits", "2", "1")
    header, *_ = [line for line in printed.splitlines() if line.startswith("images")]
    assert f"{target} (%)" in header and "Digits (source, %)" in header
    clean, robust = cells(printed.split("images ")[1], "CoOp")
    assert clean[0] == "clean" and float(clean[3]) > 50
    # trained once: the prompts are those of the few-shot run
    assert (output / "digits/CoOp/mini_2shots/seed1/results.json").exists()
    log = next((output / "evaluation").rglob("CoOp/**/log.txt")).read_text()
    assert "Loaded" in log and "trained on other classes" in log or target == "RenderedDigits"


def test_coop_and_apt_train_longer_with_more_shots():
    def epochs(config, method, shots, dataset="caltech101"):
        program = f"CFG={config}; set -- data {dataset}; source scripts/protocol.sh; " \
                  f"epochs {method} {shots}"  # fmt: skip
        environment = {k: v for k, v in os.environ.items() if k != "CFG"} | {"INSTALL": "no"}
        return subprocess.run(
            ["bash", "-c", program], cwd=ROOT, text=True, capture_output=True, env=environment
        ).stdout.split()

    assert [epochs("vit_b32", "APT", k)[-1:] for k in (1, 2, 4, 8)] == [["50"], ["100"], ["100"], []]
    assert epochs("vit_b32", "APT", 16, "imagenet") == ["OPTIM.MAX_EPOCH", "50"]
    assert epochs("rn50", "CoOp", 1) == ["OPTIM.MAX_EPOCH", "50"]
    assert epochs("mini", "CoOp", 1) == epochs("vit_b32", "APD", 1) == []
