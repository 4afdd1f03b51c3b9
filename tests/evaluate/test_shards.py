"""An evaluation in shards is the evaluation of all images, whoever is killed on the way."""

import json
import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from apd.attacks import ThreatModel
from apd.errors import UserError
from apd.evaluate import EvaluationRequest, Shard, Source, evaluate, fingerprint
from apd.evaluate.shards import Images, Merger, shard_counts
from apd.evaluate.state import AttackState

CLASSES, N = 4, 32
THREAT = ThreatModel("linf", eps=3, alpha=0.75, steps=6, restarts=2)


class Net(nn.Module):
    """It computes in float64: batches of other sizes round their sums differently."""

    def __init__(self, seed=0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            layers = [nn.Flatten(), nn.Linear(192, 32), nn.Tanh(), nn.Linear(32, CLASSES)]
            self.layers = nn.Sequential(*layers).double()

    def forward(self, images):
        return self.layers(images.double()).float()


NET = Net()


def data(seed=1):
    images = torch.rand(N, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        labels = NET(images).argmax(1)
    labels[::5] = (labels[::5] + 1) % CLASSES
    return DataLoader(TensorDataset(images, labels), 8)


def asked(store, *attacks, threat=THREAT, **more):
    return EvaluationRequest.within(threat, attacks, store=store, **more)


def run(store, *attacks, model=NET, logits=None, loader=None, **more):
    request = asked(store, *attacks, **more)
    return evaluate(logits or model, loader or data(), request, fingerprint=fingerprint(model))


def merger(store, *attacks, count=3, model=NET, loader=None, **more):
    request = asked(store, *attacks, **more)
    images = Images(loader or data(), request.subset, count)
    return Merger(request, images, fingerprint(model))


def in_shards(store, *attacks, count=3, logits=None, **more):
    for shard in reversed(Shard.all(count)):
        run(store, *attacks, shard=shard, logits=logits, **more)
    return merger(store, *attacks, count=count, **more).records()


def told(records):
    """All but the seconds."""
    return [{k: v for k, v in record.items() if k != "seconds"} for record in records]


def kept(store):
    found = [json.loads(path.read_text()) for path in sorted(Path(store).glob("*.json"))]
    return [{**one, "record": told([one["record"]])} for one in found]


CASES = {
    "pgd": ("pgd-6", "fgsm"),
    "every-stage": ("autoattack-1",),
    "one-by-one": ("cw-l2-2",),
    "clean": ("clean",),
}


@pytest.mark.parametrize("attacks", CASES.values(), ids=CASES)
def test_the_same_verdicts_flags_and_files(tmp_path, attacks):
    threat = ThreatModel("l2", 40, 10, 6) if "cw-l2-2" in attacks else THREAT
    whole = run(tmp_path / "whole", *attacks, threat=threat)
    parts = in_shards(tmp_path / "parts", *attacks, threat=threat)
    assert told(parts) == told(whole)
    assert kept(tmp_path / "parts") == kept(tmp_path / "whole")
    assert list((tmp_path / "parts").rglob("*.pt")) == []
    assert all(record["seconds"] > 0 for record in parts)


@pytest.mark.parametrize(
    "more",
    [
        {"last_iterate": True},
        {"precision": "bf16"},
        {"seed": 5},
        {"subset": 20},
        {"source": Source("transfer:x", (Net(2),), "x")},
        {"threat": ThreatModel("linf", 3, 1, 4, loss="kl")},
    ],
    ids=lambda more: next(iter(more)),
)
def test_the_same_under_other_conditions(tmp_path, more):
    assert told(in_shards(tmp_path / "parts", **more)) == told(run(tmp_path / "whole", **more))
    assert kept(tmp_path / "parts") == kept(tmp_path / "whole")


def flagged(images):
    """No gradient for dark images; deaf to all that is far from them."""
    dark = images.mean(dim=(1, 2, 3), keepdim=True) < 0.5
    logits = NET(torch.where(dark, images.detach(), images))
    far = images.flatten(1).std(dim=1) > 0.45
    return torch.where(far[:, None], torch.eye(CLASSES)[0], logits)


@pytest.mark.parametrize("count", [2, 7])
def test_the_same_flags_of_a_model_that_raises_them(tmp_path, count):
    whole = run(tmp_path / "whole", logits=flagged)
    parts = in_shards(tmp_path / "parts", logits=flagged, count=count)
    assert told(parts) == told(whole)
    assert {"zero-gradients", "unbounded"} <= parts[1]["flags"].keys()


def test_every_image_is_attacked_in_one_shard_only(tmp_path):
    seen = torch.zeros(N, dtype=torch.long)
    images = data().dataset.tensors[0]

    def counted(x):
        if not torch.is_grad_enabled():
            seen.add_((x[:, None] == images).flatten(2).all(2).sum(0))
        return NET(x)

    for shard in Shard.all(4):
        before = seen.clone()
        run(tmp_path, "clean", shard=shard, logits=counted)
        assert (seen - before)[shard.rows].all() and (seen - before).sum() == len(seen[shard.rows])
    assert seen.tolist() == [1] * N


def test_predictions_reach_the_host_evaluator(tmp_path):
    run(tmp_path, shard=Shard(1, 2)), run(tmp_path, shard=Shard(2, 2))
    seen = []
    merger(tmp_path, count=2).records(on_clean=lambda *batch: seen.append(batch))
    ((logits, labels),) = seen
    images, expected = data().dataset.tensors
    assert torch.equal(logits.argmax(1), NET(images).argmax(1)) and torch.equal(labels, expected)


# -- what is missing -------------------------------------------------------------------------------


def test_only_what_is_missing_is_wanted(tmp_path):
    run(tmp_path, "fgsm", shard=Shard(2, 3))
    assert merger(tmp_path, "fgsm").missing() == [Shard(1, 3), Shard(3, 3)]
    assert merger(tmp_path, "fgsm", "pgd-6").missing() == Shard.all(3)
    in_shards(tmp_path, "fgsm")
    assert merger(tmp_path, "fgsm").missing() == []
    both = merger(tmp_path, "fgsm", "pgd-6")
    assert [attack.name for attack in both.unfinished()] == ["pgd-6"]
    passes = []
    for shard in Shard.all(3):
        evaluate(
            lambda x: passes.append(x.requires_grad) or NET(x),
            data(),
            both.shard_request(shard),
            fingerprint=fingerprint(NET),
        )
    assert told(both.records()) == told(run(tmp_path / "whole", "fgsm", "pgd-6"))
    assert any(passes)


@pytest.mark.parametrize(
    "change",
    [
        {"model": Net(1)},
        {"loader": data(seed=2)},
        {"seed": 7},
        {"subset": 30},
        {"count": 2},
        {"threat": ThreatModel("linf", 2, 0.75, 6, 2)},
        {"last_iterate": True},
        {"source": Source("transfer:x", (Net(2),), "x")},
    ],
    ids=lambda change: next(iter(change)),
)
def test_two_evaluations_never_merge(tmp_path, change):
    for shard in Shard.all(3):
        run(tmp_path, shard=shard)
    assert merger(tmp_path).missing() == []
    assert len(merger(tmp_path, **change).missing()) == change.get("count", 3)


def test_counts_of_shards_are_found(tmp_path):
    assert shard_counts(tmp_path) == []
    run(tmp_path, "fgsm", shard=Shard(2, 3))
    run(tmp_path, "fgsm", shard=Shard(1, 12))
    assert shard_counts(tmp_path) == [3, 12]


@pytest.mark.parametrize("text", ["0/2", "3/2", "2", "a/b", "1/2/3", "-1/2"])
def test_a_shard_is_i_of_n(text):
    with pytest.raises(UserError, match=f"--shard {text}: use i/N"):
        Shard.parse(text)


def test_more_shards_than_images_are_told(tmp_path):
    with pytest.raises(UserError, match="33 shards of 32 images: use fewer"):
        run(tmp_path, shard=Shard(1, 33))
    with pytest.raises(UserError, match="21 shards of 20 images: use fewer"):
        merger(tmp_path, count=21, subset=20)


@pytest.mark.parametrize("size", [5, 7, 31])
def test_a_last_batch_may_be_smaller_than_there_are_shards(tmp_path, size):
    loader = DataLoader(data().dataset, size)
    whole = run(tmp_path / "whole", "pgd-3", loader=loader)
    parts = in_shards(tmp_path / "parts", "pgd-3", count=9, loader=loader)
    assert told(parts) == told(whole)


@pytest.mark.parametrize("ended", [True, False])
def test_shards_of_a_version_that_did_not_look_what_moved_are_merged(tmp_path, ended):
    _, old = merger(tmp_path / "parts", count=2).missing_files(Shard(1, 2))
    for shard in Shard.all(2):
        run(tmp_path / "parts", shard=shard)
    state = torch.load(old)
    del state["moved"]
    old.unlink()
    torch.save(state, old if ended else old.with_name(old.name.replace(".done", "")))
    if not ended:
        run(tmp_path / "parts", shard=Shard(1, 2))
    parts = told(merger(tmp_path / "parts", count=2).records())
    whole = told(run(tmp_path / "whole"))
    assert parts[1]["checks"].pop("moved") is None and whole[1]["checks"].pop("moved") == 100
    assert parts == whole


# -- kills -----------------------------------------------------------------------------------------


def _child(store, attacks, shard, saves, adv):
    save = AttackState.save

    def saving(state, path):
        nonlocal saves
        save(state, path)
        saves -= 1
        if not saves:
            os.kill(os.getpid(), signal.SIGKILL)

    AttackState.save = saving
    run(store, *attacks, shard=shard, save_adv=adv)


def load(folder):
    (folder,) = Path(folder).iterdir()
    parts = [dict(np.load(path)) for path in sorted(folder.glob("*.npz"))]
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = whole["index"].argsort()
    return {name: column[order] for name, column in whole.items()}


def test_a_killed_shard_goes_on_and_its_images_are_kept(tmp_path):
    attacks = ("autoattack-1",)
    whole = run(tmp_path / "whole", *attacks, save_adv=tmp_path / "adv")
    torn, adv, kills = tmp_path / "torn", tmp_path / "torn-adv", 0
    for shard in Shard.all(2):
        for saves in (1, 2):
            process = multiprocessing.get_context("fork").Process(
                target=_child, args=(torn, attacks, shard, saves, adv)
            )
            process.start()
            process.join(60)
            kills += process.exitcode == -signal.SIGKILL
            assert shard in merger(torn, *attacks, count=2, save_adv=adv).missing()
        run(torn, *attacks, shard=shard, save_adv=adv)
    assert kills == 4
    assert told(merger(torn, *attacks, count=2, save_adv=adv).records()) == told(whole)
    found, torn_found = load(tmp_path / "adv"), load(adv)
    assert all(np.array_equal(found[name], torn_found[name]) for name in found)
