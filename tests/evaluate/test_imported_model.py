"""apd-eval --model: a model of somebody's own module, from the command line."""

import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import apd
from apd.results import read_results

NETS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Flatten(), nn.Linear(192, 3)).double()

    def forward(self, images):
        return 8 * self.layers(images.double() - 0.5).float()

def network():
    return Net().eval()

def function():
    net = network()
    return lambda images: net(images)

def broken():
    raise RuntimeError("no weights\\nhere")

def number():
    return 3

module = network()
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with nets.py and pictures/, which is the working directory."""
    (tmp_path / "nets.py").write_text(NETS)
    draw = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(5):
            pixels = draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "nets", raising=False)
    yield tmp_path
    sys.modules.pop("nets", None)


MODEL = ("--model", "nets:network", "--data", "pictures")
ATTACKS = ("--attack", "pgd-5,fgsm", "--eps", "2,4/255")


def kept(store):
    found = {p.name: json.loads(p.read_text()) for p in Path(store, "evaluations").glob("*.json")}
    for one in found.values():
        del one["record"]["seconds"]
    return found


def test_it_is_the_evaluation_of_the_python_api(here, call):
    code, out, _ = call(*MODEL, *ATTACKS)
    assert code == 0 and out.count("network") == 4
    import nets

    report = apd.robustness(
        nets.network(), "pictures", eps=[2 / 255, 4 / 255], attacks=["pgd-5", "fgsm"], store="api"
    )
    assert kept("output/pictures/network") == kept("api") and len(kept("api")) == 4
    assert 0 < report.robust_accuracy() <= report.clean_accuracy < 100
    results = read_results("output/pictures/network")
    assert (results["method"], results["dataset"], results["seed"]) == ("network", "pictures", 1)
    assert results["class_names"] == ["a", "b", "c"] and len(results["evaluations"]) == 5
    assert call(*MODEL, *ATTACKS)[1].splitlines()[:3] == out.splitlines()[:3]


@pytest.mark.parametrize("name", ["network", "function", "module"])
def test_in_shards_as_on_one_device(here, call, inline, name):
    model = ("--model", f"nets:{name}", "--data", "pictures", "--name", "mine", *ATTACKS)
    assert call(*model, "--store", "whole")[0] == 0
    started = len(inline.started)
    assert call(*model, "--store", "parts", "--shards", 2)[0] == 0
    assert len(inline.started) == started + 2
    for shard in ("1/2", "2/2"):
        assert call(*model, "--store", "hand", "--shard", shard)[0] == 0
    assert call(*model, "--store", "hand", "--merge")[0] == 0
    assert kept("parts") == kept("hand") == kept("whole")
    assert not list(here.rglob("*.pt"))


def test_another_process_can_be_told_of_it(here):
    from apd.evaluate.imported import ImportedModel
    from apd.evaluate.model import About

    asked = ImportedModel(here / "store", "nets:network", "pictures", About("mine"), size=8)
    assert pickle.loads(pickle.dumps(asked)) == asked
    assert asked.load().saved == asked


def test_images_are_resized_and_classes_named(here, call):
    Image.new("RGB", (40, 20), (9, 9, 200)).save(here / "pictures" / "a" / "wide.jpg")
    code, _, err = call(*MODEL, "--eps", 2, "--attack", "fgsm")
    assert code == 2 and "(3, 20, 40)" in err and "--size" in err
    options = ("--eps", 2, "--attack", "fgsm", "--size", 8, "--classes", "c,b,a")
    assert call(*MODEL, *options)[0] == 0
    (verdicts,) = kept("output/pictures/network").values()
    assert verdicts["labels"] == [2] * 6 + [1] * 5 + [0] * 5
    assert call(*MODEL, *options, "--figures", "figures")[0] == 0
    assert (here / "figures" / "network_seed1_examples.png").stat().st_size > 0


@pytest.mark.parametrize(
    ("told", "args"),
    [
        ("give runs, or --model with --data", []),
        ("give runs, or --model with --data", ["run", *MODEL]),
        ("--model and --data go together", ["--model", "nets:network"]),
        ("--root and --compile are for runs", [*MODEL, "--compile"]),
        ("use package.module:function", ["--model", "nets", "--data", "pictures"]),
        ("cannot import nots (ModuleNotFoundError", ["--model", "nots:x", "--data", "pictures"]),
        ("nets has no netwrk: did you mean", ["--model", "nets:netwrk", "--data", "pictures"]),
        (
            "it fails (RuntimeError: no weights here, nets.py line 23)",
            ["--model", "nets:broken", "--data", "pictures"],
        ),
        ("it returns a int, but must", ["--model", "nets:number", "--data", "pictures"]),
        ("there is no folder", ["--model", "nets:network", "--data", "nowhere"]),
        ("give --eps", MODEL),
        ("only runs have others than white-box", [*MODEL, "--eps", 2, "--source", "static"]),
        ("--store nets.py: ", [*MODEL, "--eps", 2, "--store", "nets.py"]),
    ],
)
def test_mistakes_are_told_in_one_line(here, call, told, args):
    code, _, err = call(*args)
    assert code == 2 and told in err and err.count("\n") == 1, err
    assert not (here / "output").exists()


def test_nothing_of_another_model_is_overwritten(here, call):
    assert call(*MODEL, *ATTACKS)[0] == 0
    before = kept("output/pictures/network")
    # of another length, because Python takes a file of the same length and second for unchanged
    (here / "nets.py").write_text(NETS.replace("manual_seed(0)", "manual_seed(12)"))
    sys.modules.pop("nets")
    code, _, err = call(*MODEL, *ATTACKS)
    assert code == 2 and "has results of another model or data (fingerprint " in err
    assert kept("output/pictures/network") == before
