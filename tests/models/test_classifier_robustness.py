"""apd.robustness of what apd.load gives is the run's own evaluation; other networks have theirs."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import apd
from apd.arguments.evaluate import main as apd_eval
from apd.attacks import ThreatModel, surviving
from apd.evaluate.run import SavedRun
from apd.report.command import main as apd_report
from apd.results import read_results
from apd.tables.command import main as apd_table


@pytest.fixture(scope="module")
def evaluated(folder, tmp_path_factory):
    """A copy of the run, evaluated at eps 64/255; and the verdicts of that."""
    copy = Path(shutil.copytree(folder, tmp_path_factory.mktemp("evaluated") / "run"))
    before = {path.name for path in verdict_files(copy)}
    assert apd_eval([str(copy), "--attack", "pgd-3", "--eps", "64"]) == 0
    (added,) = (path for path in verdict_files(copy) if path.name not in before)
    return copy, json.loads(added.read_text())


def verdict_files(folder):
    return list(Path(folder, "evaluations").glob("*.json"))


def judged(verdicts):
    """What verdicts say, but for times and for what they are kept by."""
    record = {k: v for k, v in verdicts["record"].items() if k not in ("seconds", "key")}
    identity = {k: v for k, v in verdicts["identity"].items() if k not in ("model", "made_on")}
    return record, identity, verdicts["lost_to"], verdicts["labels"]


@pytest.mark.parametrize("form", ["tensors", "folder"])
def test_a_loaded_run_is_evaluated_as_the_run_is(evaluated, labelled, tiny, tmp_path, form, capsys):
    run, expected = evaluated
    results = read_results(run)
    report = apd.robustness(
        apd.load(run),
        labelled if form == "tensors" else Path(tiny.root, "shapes"),
        eps=64 / 255,
        alpha=32 / 255,
        attacks=["pgd-3"],
        store=tmp_path / "ours",
        name="AdvIVLP, loaded",
        dataset=results["dataset"],
        backbone=results["backbone"],
        batch_size=8,
    )
    (ours,) = verdict_files(tmp_path / "ours")
    assert judged(json.loads(ours.read_text())) == judged(expected)
    assert report.evaluations[1]["correct"] < report.evaluations[0]["correct"]  # it can tell
    written = read_results(tmp_path / "ours")
    # both stand in one table
    capsys.readouterr()
    assert apd_table([str(run), str(tmp_path / "ours")]) == 0
    rows = [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()]
    assert {"AdvIVLP", "AdvIVLP, loaded"} <= set(rows)
    folders = [str(run), str(tmp_path / "ours")]
    assert apd_report([*folders, "-o", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "AdvIVLP, loaded" in page and "No table" not in page and "No figure" not in page
    assert page.count("MAX_EPOCH") == 3  # a model has no config to compare
    for use in (
        lambda: apd.load(tmp_path / "ours"),
        lambda: SavedRun(ours.parents[1], written).load(),
    ):
        with pytest.raises(apd.UserError, match="results of a model that is no run"):
            use()


class Wrapped(nn.Module):
    """A network of others, which expects normalised images."""

    def __init__(self, network):
        super().__init__()
        self.network, self.mean, self.std = network, 0.45, 0.25

    def forward(self, images):
        return self.network((images - self.mean) / self.std)


def of_timm():
    timm = pytest.importorskip("timm")
    return timm.create_model(
        "vit_tiny_patch16_224",
        img_size=32,
        patch_size=8,
        embed_dim=32,
        depth=2,
        num_heads=2,
        num_classes=4,
    )


def of_torchvision():
    from torchvision.models.resnet import BasicBlock, ResNet

    return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=4)


@pytest.mark.parametrize("network", [of_timm, of_torchvision])
def test_networks_of_others_are_judged_as_by_a_plain_loop(network, labelled):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Wrapped(network()).eval()
    images = labelled[0]
    with torch.no_grad():
        labels = model(images).argmax(1)
    data = DataLoader(list(zip(images, labels)), 20)
    report = apd.robustness(model, data, eps=1 / 255, attacks=["fgsm"])
    threat = ThreatModel("linf", 1, 1, 1, random_start=False)
    expected = surviving(model, images, labels, threat)
    assert report.clean_accuracy == 100
    assert torch.equal(torch.from_numpy(report.survivors("fgsm")), expected)
