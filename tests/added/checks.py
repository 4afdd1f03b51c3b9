"""What tests/test_contributing.py adds to a copy of the repository works in that copy."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torchattacks
from PIL import Image
from sample_results import record, results

import apd
from apd.attacks import ThreatModel, find_attack, pgd
from apd.catalog import dataset_name, template
from apd.clip import load_clip
from apd.config import default
from apd.evaluate.flags import add_flags
from apd.figures.command import main as apd_plot
from apd.host import build_dataset
from apd.methods import METHODS
from apd.results import read_results, write_results
from apd.results.history import read_history
from apd.tables.command import main as apd_table
from apd.train.command import parse_args, setup_cfg

COPY = Path(__file__).parents[1]
EPS = 8 / 255


def test_it_is_the_copy_that_is_tested():
    assert Path(apd.__file__).parents[1] == COPY


# -- the method and its losses ---------------------------------------------------------------------


def test_the_method_trains_with_its_losses(run, tmp_path):
    assert run("MirrorIVLP", tmp_path, "TRAINER.MirrorIVLP.LAMBDA_SPREAD", 0.5).code == 0
    found = read_results(tmp_path)
    assert (found["method"], found["modality"]) == ("MirrorIVLP", "text + visual")
    history = read_history(tmp_path)
    assert len(history["mirror"]) == len(history["spread"]) == 2 and min(history["spread"]) > 0


def test_a_weight_takes_numbers_from_0(run):
    refused = run("MirrorIVLP", None, "TRAINER.MirrorIVLP.LAMBDA_MIRROR", -1)
    assert refused.code == 2 and "LAMBDA_MIRROR is -1: use a number from 0" in refused.err


@pytest.mark.parametrize("file", ["mini", "vit_b32"])
def test_the_methods_configs_were_made(file):
    apd.register()
    path = COPY / f"configs/trainers/MirrorIVLP/{file}.yaml"
    data = ["--dataset-config-file", str(COPY / "configs/datasets/puppets.yaml")]
    arguments = ["--root", "data", "--trainer", "MirrorIVLP", "--config-file", str(path), *data]
    cfg = setup_cfg(parse_args(arguments))
    assert cfg.TRAINER.MirrorIVLP.LAMBDA_MIRROR == 0.25 and cfg.AT.TRAIN.EPS


def test_configs_of_the_clips_were_made():
    folder = COPY / "configs/trainers"
    assert {path.parent.name for path in folder.glob("*/vit_b16_240.yaml")} == {*METHODS}
    text = " ".join((folder / "APT/vit_b16_240.yaml").read_text().replace("#", "").split())
    assert "(240, 240)" in text and "ViT-B/32's setting is carried over [O]" in text


def test_the_mini_clip_is_loaded():
    assert load_clip("mini-new").visual.input_resolution == 32
    assert "NAME: mini-new\n" in (COPY / "configs/trainers/APD/mini_new.yaml").read_text()


# -- data sets -------------------------------------------------------------------------------------


def dataset(name, root):
    apd.register()
    cfg = default()
    cfg.merge_from_file(str(COPY / f"configs/datasets/{name}.yaml"))
    cfg.DATASET.ROOT, cfg.SEED, cfg.DATASET.NUM_SHOTS = str(root), 1, 1
    return cfg.DATASET, build_dataset(cfg)


def test_the_folder_is_a_data_set(tmp_path):
    for place in ("train/cat", "train/dog", "test/cat", "test/dog"):
        (tmp_path / "puppets" / place).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "puppets" / place / "1.png")
    options, data = dataset("puppets", tmp_path)
    assert (dataset_name(options), data.classnames) == ("Puppets", ["cat", "dog"])
    assert template(options) == "a photo of a {}, a hand puppet."
    assert len(data.train_x) == len(data.test) == 2


def test_the_layout_is_a_data_set(tmp_path):
    options, data = dataset("stripes", tmp_path)
    assert data.classnames == ["lying stripes", "standing stripes"]
    assert template(options) == "a drawing of {}."
    assert [len(split) for split in (data.train_x, data.val, data.test)] == [2, 2, 4]
    assert np.asarray(Image.open(data.test[0].impath)).shape[:2] == (8, 8)


# -- attacks ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    layers = [torch.nn.Flatten(), torch.nn.Linear(192, 16), torch.nn.Tanh(), torch.nn.Linear(16, 4)]
    return torch.nn.Sequential(*layers).eval()


@pytest.fixture(scope="module")
def labelled(model):
    images = torch.rand(24, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return images, model(images).argmax(dim=1)


def test_the_attack_is_torchattacks(model, labelled):
    report = apd.robustness(model, labelled, eps=EPS, alpha=EPS / 4, attacks=["mifgsm-5"])
    (attacked,) = (r for r in report.evaluations if r["attack"] == "mifgsm-5")
    theirs = torchattacks.MIFGSM(model, eps=EPS, alpha=EPS / 4, steps=5, decay=0.9)
    right = model(theirs(*labelled)).argmax(dim=1) == labelled[1]
    assert attacked["correct"] == right.sum() and 0 < right.sum() < 24
    assert attacked["threat_model"]["alpha"] == pytest.approx(2)


def test_flags_know_the_attack():
    threat = find_attack("mifgsm", ThreatModel("linf", 4, 1, 10)).conditions
    threat |= {"source": "white-box", "seed": 1}
    weaker = {**record("mifgsm", 49.0, threat), "images": "all", "checks": {"moved": 0}}
    square = {**record("square-5000", 42.0, {**threat, "alpha": None}), "images": "all"}
    add_flags([weaker, square])
    assert {*weaker["flags"]} == {"unmoved", "black-box-beats-white-box"}


def test_the_loss_is_climbed(model, labelled):
    threat = ThreatModel("linf", 8, 2, 5, random_start=False, loss="logit")
    images, labels = labelled
    attacked = pgd(model, images, labels, threat)
    rows = torch.arange(len(images))
    assert (model(attacked)[rows, labels] < model(images)[rows, labels]).all()


# -- tables and figures ----------------------------------------------------------------------------


@pytest.fixture
def runs(tmp_path):
    for method in ("CoOp", "APD"):
        for seed, clean in ((1, 80.0), (2, 70.0)):
            write_results(tmp_path / method / str(seed), results(method, clean, seed=seed))
    return tmp_path


def test_the_table_is_made(runs, tmp_path, capsys):
    path = tmp_path / "table.json"
    assert apd_table([str(runs), "--table", "worst-seed", "--json", str(path)]) == 0
    (table,) = json.loads(path.read_text())["tables"]
    assert [row["clean (%)"]["values"] for row in table["rows"]] == [[70.0], [70.0]]


def test_the_table_over_tasks_is_made(tmp_path, capsys):
    for task, gain in (("A", 1.0), ("B", 2.0), ("C", 6.0)):
        for method, robust in (("AdvIVLP", 30.0), ("APD", 30.0 + gain)):
            values = results(method, 60.0, robust, dataset=task)
            write_results(tmp_path / task / method, values)
    arguments = [str(tmp_path), "--table", "median", "--baseline", "AdvIVLP"]
    assert apd_table(arguments) == 0
    assert re.search(r"APD - AdvIVLP +2\.00", capsys.readouterr().out)


def test_the_figure_is_drawn(runs, tmp_path, capsys):
    assert apd_plot([str(runs), "--kind", "seeds", "-o", str(tmp_path / "out")]) == 0
    (path,) = (tmp_path / "out").iterdir()
    assert path.name == "seeds_Digits_mini_embedded_16shots.png"


@pytest.mark.parametrize(
    "command, words",
    [
        ("apd.arguments.evaluate", ["mifgsm"]),
        ("apd.tables.command", ["worst-seed", "median"]),
        ("apd.figures.command", ["seeds", "each seed's accuracy"]),
    ],
)
def test_help_names_it(command, words, capsys):
    module = __import__(command, fromlist=["main"])
    with pytest.raises(SystemExit):
        module.main(["--help"])
    out = " ".join(capsys.readouterr().out.split())
    assert all(word in out for word in words)
