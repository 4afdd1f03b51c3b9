"""In somebody's checkout of CoOp, what README and docs/checkouts.md say works."""

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

import apd
from apd.errors import report_uncaught

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SECTION = re.search(r"## In a CoOp or MaPLe checkout\n(.*?)\n## ", README, flags=re.DOTALL)[1]
PAGE = (ROOT / "docs/checkouts.md").read_text(encoding="utf-8").split("\n## Which of their")[0]

TOOLBOX = {
    "embedded": "from apd.host import *\n",
    "dassl": """\
from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.engine import TRAINER_REGISTRY, TrainerX, build_trainer
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import set_random_seed
""",
}
# in the shape of CoOp's: its trainers, then a config from files and flags, then the toolbox
TRAIN = """\
import argparse

from toolbox import build_trainer, get_cfg_default, set_random_seed

import trainers.coop


def extend_cfg(cfg):
    cfg.TRAINER.COOP = type(cfg)({"N_CTX": 16, "PREC": "fp16"})


def setup_cfg(args):
    cfg = get_cfg_default()
    extend_cfg(cfg)
    for path in (args.dataset_config_file, args.config_file):
        cfg.merge_from_file(path)
    cfg.DATASET.ROOT, cfg.OUTPUT_DIR = args.root, args.output_dir
    cfg.SEED, cfg.TRAINER.NAME = args.seed, args.trainer
    cfg.merge_from_list(args.opts)
    cfg.freeze()
    return cfg


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for name in ("root", "output-dir", "config-file", "dataset-config-file", "trainer"):
        parser.add_argument(f"--{name}", default="")
    parser.add_argument("--seed", type=int, default=-1)
    parser.add_argument("opts", nargs=argparse.REMAINDER)
    cfg = setup_cfg(parser.parse_args())
    set_random_seed(cfg.SEED)
    build_trainer(cfg).train()
"""
# a CoOp and a Caltech101 of its own, with the toolbox's schedule
COOP = """\
import torch
import torch.nn.functional as F
from toolbox import *


@TRAINER_REGISTRY.register()
class CoOp(TrainerX):
    def build_model(self):
        assert self.cfg.TRAINER.COOP.PREC == "fp16"
        self.model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 2))
        self.optim = build_optimizer(self.model, self.cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model("its_own", self.model, self.optim, self.sched)

    def forward_backward(self, batch):
        loss = F.cross_entropy(self.model(batch["img"]), batch["label"])
        self.model_backward_and_update(loss)
        print("rate", self.get_current_lr())
        self.update_lr()
        return {"loss": loss.item()}


@DATASET_REGISTRY.register()
class Caltech101(DatasetBase):
    def __init__(self, cfg):
        images = [
            Datum(f"{cfg.DATASET.ROOT}/{name}.png", label, classname=name)
            for label, name in enumerate(("ant", "bee"))
        ]
        super().__init__(train_x=images, val=images, test=images)
"""
FILES = {
    "train.py": TRAIN,
    "trainers/__init__.py": "",
    "trainers/coop.py": COOP,
    "configs/datasets/caltech101.yaml": "DATASET: {NAME: Caltech101}\n",
    "configs/trainers/CoOp/vit_b32.yaml": """\
DATALOADER: {TRAIN_X: {BATCH_SIZE: 2}}
OPTIM: {LR: 0.002, LR_SCHEDULER: cosine, WARMUP_EPOCH: 1, WARMUP_TYPE: constant,
  WARMUP_CONS_LR: 0.00001}
""",
}
SMALL = "MODEL.BACKBONE.NAME mini INPUT.SIZE (32,32) DATALOADER.NUM_WORKERS 0 USE_CUDA False"
SHORT = (
    "DATASET.NUM_SHOTS 1 OPTIM.MAX_EPOCH 1 AT.TRAIN.STEPS 1 AT.TEST.STEPS 1 AT.TEST.SUBSET 20 "
    "TRAINER.APD.PROMPT_DEPTH_TEXT 3 TRAINER.APD.PROMPT_DEPTH_VISION 3"
)


# commands one after another, each in a process of its own that has PyTorch and clip imported
WARM = """\
import os, runpy, sys
import clip

for line in sys.argv[1:]:
    if not (child := os.fork()):
        sys.argv = line.split()
        runpy.run_path(sys.argv[0], run_name="__main__")
        sys.exit()
    if os.waitpid(child, 0)[1]:
        sys.exit(f"failed: {line}")
"""


@pytest.fixture(params=TOOLBOX)
def checkout(request, tmp_path):
    """Function: commands of the section, in a checkout edited as the section says. One is run by
    an interpreter of its own."""
    if request.param == "dassl" and not find_spec("dassl"):
        pytest.skip("Dassl is not installed")
    for name, text in {**FILES, "toolbox.py": TOOLBOX[request.param]}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "DATA").mkdir()
    for name, colour in (("ant", "red"), ("bee", "blue")):
        Image.new("RGB", (32, 32), colour).save(tmp_path / "DATA" / f"{name}.png")
    edited = TRAIN
    places = ("import trainers.coop\n", "    extend_cfg(cfg)\n")
    additions = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    for place, addition in zip(places, additions, strict=True):
        assert edited.count(place) == 1
        edited = edited.replace(place, place + addition)
    (tmp_path / "train.py").write_text(edited)
    environment = {
        **os.environ,
        "APD_HOST": request.param,
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if (Path(p) / "dassl").is_dir()),
    }

    def run(*commands):
        lines = [command.removeprefix("python ") for command in commands]
        arguments = ["-c", WARM, *lines] if lines[1:] else lines[0].split()
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env=environment,
            text=True,
            capture_output=True,
        )

    run.folder = tmp_path
    return run


def commands():
    """Those of the page that train, a line each."""
    return train_commands(PAGE)


def train_commands(text):
    blocks = "".join(re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL))
    lines = re.sub(r" *\\\n *", " ", blocks).splitlines()
    return [line for line in lines if line.startswith("python train.py")]


def test_the_readme_says_the_same_in_short():
    """Its lines of code are those of the page, with comments; its commands are the page's."""
    (code,) = re.findall(r"```python\n(.*?)```", SECTION, flags=re.DOTALL)
    short = [line.split("  #")[0] for line in code.splitlines()]
    long = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert short == ["; ".join(filter(None, block.splitlines())) for block in long]
    assert set(train_commands(SECTION)) <= set(commands())
    installs = [line for line in SECTION.splitlines() if line.startswith("pip install")]
    assert len(installs) == 3 and all(line in PAGE for line in installs)


def test_the_readmes_commands_work_in_a_checkout(checkout):
    options = (f"{SMALL} {SHORT}", f"{SMALL} {SHORT}", f"{SMALL} OPTIM.MAX_EPOCH 2")
    done = checkout(*map(" ".join, zip(commands(), options, strict=True)))
    assert done.returncode == 0, done.stderr
    folders = [checkout.folder / "output" / name / "APD" for name in ("digits", "caltech101")]
    results = [json.loads((folder / "results.json").read_text()) for folder in folders]
    assert [result["dataset"] for result in results] == ["Digits", "Caltech101"]
    assert [result["classes"] for result in results] == [10, 2]  # its own two
    assert all(len(result["evaluations"]) == 2 for result in results)

    assert re.findall("rate (.*)", done.stdout) == ["1e-05", "0.002"]
    its_own = checkout.folder / "output/caltech101/CoOp/its_own"
    assert (its_own / "model.pth.tar-2").is_file()


def test_our_errors_are_one_line_there(checkout):
    *_, theirs = commands()
    theirs = theirs.replace("--trainer CoOp", "--trainer APD")  # with CoOp's config
    done = checkout(f"{theirs} {SMALL}")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: AT.TRAIN.EPS is not set (unit: 1/255)")


def test_other_errors_are_what_they_were(monkeypatch):
    seen = []
    monkeypatch.setattr(sys, "excepthook", lambda *error: seen.append(error))
    report_uncaught()
    report_uncaught()
    error = KeyError("NO.KEY")
    sys.excepthook(KeyError, error, None)
    assert seen == [(KeyError, error, None)]


def test_configs_lie_where_the_command_says(capsys):
    assert apd.config.print_folder([]) == 0
    assert (Path(capsys.readouterr().out.strip()) / "trainers/APD/mini.yaml").is_file()
