"""A killed evaluation goes on to the same verdicts; what it left is used for nothing else."""

import json
import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from apd.attacks import ThreatModel
from apd.errors import UserError
from apd.evaluate import EvaluationRequest, Source, evaluate
from apd.evaluate.state import AttackState, fingerprint

CLASSES, N = 4, 50
THREAT = ThreatModel("linf", eps=3, alpha=0.75, steps=6, restarts=2)


def net(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(192, 32), nn.Tanh(), nn.Linear(32, CLASSES))


def data(n=N, seed=1, batch_size=8):
    images = torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        labels = net()(images).argmax(1)
    labels[::5] = (labels[::5] + 1) % CLASSES
    return DataLoader(TensorDataset(images, labels), batch_size)


def asked(store, *attacks, threat=THREAT, **more):
    return EvaluationRequest.within(threat, attacks, store=store, checks=False, **more)


def run(store, *attacks, model=None, loader=None, **more):
    return evaluate(model or net(), loader or data(), asked(store, *attacks, **more))


def counts(records):
    return [(r["attack"], r["correct"], r.get("fell_to")) for r in records]


def lost_to(store):
    return {
        one["identity"]["attack"]: one["lost_to"]
        for one in (json.loads(path.read_text()) for path in Path(store).glob("*.json"))
    }


def _child(store, attacks, kill_at, adv):
    """Kill itself before the ``kill_at``-th save, or after it."""
    number, when = kill_at
    save = AttackState.save

    def saving(state, path):
        nonlocal number
        number -= 1
        if not number and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        save(state, path)
        if not number:
            os.kill(os.getpid(), signal.SIGKILL)

    AttackState.save = saving
    run(store, *attacks, save_adv=adv)


def killed(store, attacks, kill_at, adv=None):
    process = multiprocessing.get_context("fork").Process(
        target=_child, args=(store, attacks, kill_at, adv)
    )
    process.start()
    process.join(60)
    return process.exitcode == -signal.SIGKILL


ATTACKS = ("pgd-6", "autoattack-2")


def test_killed_again_and_again(tmp_path):
    whole = run(tmp_path / "whole", *ATTACKS)
    kills = 0
    # one save further each time, then from any moment
    for kill_at in [(1, "before"), (1, "after"), (2, "before"), (2, "after"), (1, "after")] * 2:
        kills += killed(tmp_path / "torn", ATTACKS, kill_at)
        assert not list((tmp_path / "torn").glob("*.json")) or kills > 5
    assert kills > 6
    again = run(tmp_path / "torn", *ATTACKS)
    assert counts(again) == counts(whole)
    assert lost_to(tmp_path / "torn") == lost_to(tmp_path / "whole")
    assert 0 < whole[1]["correct"] < whole[0]["correct"]
    assert list((tmp_path / "torn").glob("*.pt")) == []


def test_what_is_behind_is_not_done_again(tmp_path):
    assert killed(tmp_path, ("pgd-6",), (3, "after"))
    passes = {"all": 0, "rest": 0}
    for name, store in (("all", None), ("rest", tmp_path)):
        model = net()

        def counted(images, model=model, name=name):
            passes[name] += len(images)
            return model(images)

        evaluate(counted, data(), asked(store), fingerprint=fingerprint(model))
    assert N < passes["rest"] < 0.8 * passes["all"]


def test_a_finished_evaluation_costs_the_clean_pass(tmp_path):
    first, sizes = run(tmp_path), []

    def counted(images):
        sizes.append(len(images))
        return net()(images)

    second = evaluate(counted, data(), asked(tmp_path), fingerprint=fingerprint(net()))
    assert counts(first) == counts(second)
    assert sum(sizes) == N


@pytest.fixture(scope="module")
def used(tmp_path_factory):
    """A store with a finished evaluation, of which a copy was killed."""
    store = tmp_path_factory.mktemp("used")
    run(store)
    killed(store, ("pgd-6",), (2, "after"))
    return store


@pytest.mark.parametrize(
    "change",
    [
        {"model": net(1)},
        {"loader": data(seed=2)},
        {"loader": data(n=40)},
        {"seed": 7},
        {"threat": ThreatModel("linf", 2, 0.75, 6, 2)},
        {"precision": "bf16"},
        {"threat": ThreatModel("linf", 3, 0.75, 6, 2, loss="margin")},
        {"threat": ThreatModel("linf", 3, 0.75, 6, 3)},
        {"last_iterate": True},
        {"subset": 30},
        {"source": Source("transfer:x", (net(2),), "x")},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_stale_file_is_never_used(used, tmp_path, change):
    shutil.copytree(used, tmp_path / "used")
    expected = run(tmp_path / "fresh", **change)
    assert counts(run(tmp_path / "used", **change)) == counts(expected)
    keys = {path.stem for path in (tmp_path / "used").glob("*.json")}
    assert len(keys) == 2


def test_a_transferred_attack_belongs_to_both_models(tmp_path):
    def transferred(target, made_on):
        source = Source("transfer:x", (made_on,), fingerprint(made_on))
        run(tmp_path, model=target, source=source)
        return len(list(tmp_path.glob("*.json")))

    assert transferred(net(), net(2)) == transferred(net(), net(2)) == 1
    assert transferred(net(), net(3)) == 2
    assert transferred(net(1), net(2)) == 3


def test_damaged_files_are_told(tmp_path):
    killed(tmp_path, ("pgd-6",), (2, "after"))
    (state,) = tmp_path.glob("*.pt")
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(UserError, match="is damaged"):
        run(tmp_path)
    state.unlink()
    run(tmp_path)
    (finished,) = tmp_path.glob("*.json")
    finished.write_text(finished.read_text()[:100])
    with pytest.raises(UserError, match="is damaged"):
        run(tmp_path)


# -- adversarial images ----------------------------------------------------------------------------


def load(folder):
    (folder,) = Path(folder).iterdir()
    parts = [dict(np.load(path)) for path in sorted(folder.glob("*.npz"))]
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = whole["index"].argsort()
    return {name: torch.from_numpy(column[order]) for name, column in whole.items()}, len(parts)


@pytest.mark.parametrize("attack", ["pgd-6", "autoattack-2"])
def test_adversarial_images_are_kept_batch_by_batch_and_survive_kills(tmp_path, attack):
    (_, record) = run(tmp_path / "a", attack, save_adv=tmp_path / "adv")
    for kill_at in [(2, "before"), (1, "after"), (2, "before")]:
        assert killed(tmp_path / "b", (attack,), kill_at, tmp_path / "torn")
    run(tmp_path / "b", attack, save_adv=tmp_path / "torn")
    found, files = load(tmp_path / "adv")
    torn, _ = load(tmp_path / "torn")
    assert files > 2
    images, labels = data().dataset.tensors
    index = found["index"]
    clean = net()(images).argmax(1) == labels
    assert index.tolist() == clean.nonzero()[:, 0].tolist()
    assert found["attacked"].dtype == torch.float32
    assert (found["attacked"] - images[index]).abs().max() <= 3 / 255 + 1e-6
    right = net()(found["attacked"]).argmax(1) == labels[index]
    assert torch.equal(right, found["right"]) and right.sum() == record["correct"]
    assert all(torch.equal(found[name], torn[name]) for name in found)


def test_images_of_another_model_lie_elsewhere(tmp_path):
    run(tmp_path / "a", save_adv=tmp_path / "adv")
    run(tmp_path / "b", save_adv=tmp_path / "adv", model=net(1))
    assert len(list((tmp_path / "adv").iterdir())) == 2


def test_images_are_written_even_if_the_verdicts_are_known(tmp_path):
    run(tmp_path / "a")
    run(tmp_path / "a", save_adv=tmp_path / "adv")
    assert len(load(tmp_path / "adv")[0]["index"]) == 40


# -- subsets and batches ---------------------------------------------------------------------------


def test_a_subset_is_a_part_of_the_whole(tmp_path):
    whole, part = run(tmp_path / "a"), run(tmp_path / "b", subset=20)
    assert whole[1]["images"] == "all" and part[1]["images"] == {"count": 20, "seed": 0}
    assert [record["total"] for record in part] == [20, 20]
    all_lost = torch.tensor(lost_to(tmp_path / "a")["pgd-6"])
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0))[:20].sort()[0]
    assert lost_to(tmp_path / "b")["pgd-6"] == all_lost[order].tolist()


def test_as_many_images_as_there_are_is_all(tmp_path):
    assert run(tmp_path, subset=N)[0]["images"] == "all"


@pytest.mark.parametrize("last_iterate", [False, True])
def test_verdicts_do_not_depend_on_the_batch_size(tmp_path, last_iterate):
    found = []
    for batch_size in (1, 7, 50):
        store = tmp_path / str(batch_size)
        loader = data(batch_size=batch_size)
        loader = [(x.double(), y) for x, y in loader]
        run(store, model=net().double(), loader=loader, last_iterate=last_iterate)
        found.append(lost_to(store))
    assert found[0] == found[1] == found[2]


def test_the_same_images_in_other_batches_are_the_same_evaluation(tmp_path):
    run(tmp_path, loader=data(batch_size=8))
    before = [(path, path.stat().st_mtime_ns) for path in sorted(tmp_path.iterdir())]
    run(tmp_path, loader=data(batch_size=7))
    assert [(path, path.stat().st_mtime_ns) for path in sorted(tmp_path.iterdir())] == before


def test_batches_stay_full_as_images_fall():
    sizes = []

    def counted(images):
        if torch.is_grad_enabled():
            sizes.append(len(images))
        return net()(images)

    evaluate(counted, data(n=200), asked(None))
    full = [size == 8 for size in sizes]
    assert full.index(False) > 0.8 * len(full) and not any(full[full.index(False) :])


def test_the_loader_is_read_once_for_clean_images_and_once_an_attack():
    passes = []

    def parse(batch):
        passes.append(len(batch[0]))
        return batch

    evaluate(net(), data(), asked(None, "pgd-6", "fgsm"), parse_batch=parse)
    assert sum(passes) == 3 * N
