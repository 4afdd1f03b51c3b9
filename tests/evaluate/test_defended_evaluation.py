"""Evaluations of models with a test-time defence: records, flags, and verdicts that repeat."""

import multiprocessing
import os
import signal

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from apd.attacks import DefendedModel, Draws, ThreatModel
from apd.errors import UserError
from apd.evaluate import EvaluationRequest, Shard, Source, evaluate
from apd.evaluate.shards import Images, Merger
from apd.evaluate.state import AttackState
from apd.results.verdicts import read_verdicts

CLASSES, N = 4, 32
THREAT = ThreatModel("linf", eps=6, alpha=1.5, steps=8)
DRAWS = Draws(eot=3, verdict=5, rule="majority")


class Net(nn.Module):
    """It computes in float64: batches of other sizes round their sums differently."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            layers = [nn.Flatten(), nn.Linear(192, 32), nn.Tanh(), nn.Linear(32, CLASSES)]
            self.layers = nn.Sequential(*layers).double()

    def forward(self, images):
        return 8 * self.layers(images.double() - 0.5).float()


NET = Net().requires_grad_(False)
STATIC = Source("static", (NET,), "net")


def noisy_logits(images, seeds):
    noise = [
        0.1 * torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(seed))
        for seed in seeds.tolist()
    ]
    return NET(images + torch.stack(noise))


NOISY = DefendedModel(noisy_logits, randomised=True)
PLAIN = DefendedModel(lambda images, _: NET(images), randomised=False)
MIRRORED = DefendedModel(lambda images, _: NET(images.flip(-1)), randomised=False)
DEAF = DefendedModel(
    lambda images, _: torch.eye(CLASSES)[:1] + 0 * images.mean((1, 2, 3))[:, None],
    randomised=False,
)


def quantised(backward):
    def logits(images, _):
        steps = (images * 32).floor() / 32
        if backward == "surrogate":
            steps = images + (steps - images).detach()
        return NET(steps)

    return DefendedModel(logits, randomised=False, backward=backward)


def data(model=NOISY, batch_size=8, wrong=5):
    images = torch.rand(N, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        labels = model(images).argmax(1)
    labels[::wrong] = (labels[::wrong] + 1) % CLASSES
    return DataLoader(TensorDataset(images, labels), batch_size)


def run(model, store, *attacks, loader=None, threat=THREAT, **more):
    more = {"draws": DRAWS, "checks": False, **more}
    request = EvaluationRequest.within(threat, attacks, store=store, **more)
    return evaluate(model, loader or data(model), request, fingerprint="model")


def verdicts(store):
    found = [read_verdicts(path) for path in sorted(store.glob("*.json"))]
    return {(v.record["attack"], v.record["threat_model"]["source"]): v for v in found}


def lost_to(store):
    return {key: v.lost_to.tolist() for key, v in verdicts(store).items()}


# -- records --------------------------------------------------------------------------------------


def test_records_say_how_the_model_was_attacked_and_judged(tmp_path):
    _, adaptive = run(NOISY, tmp_path, "pgd-3")
    stated = {"randomised": True, "adapted": False, "backward": "exact"}
    stated |= {"eot": 3, "draws": 5, "rule": "majority", "source": "adaptive"}
    assert stated.items() <= adaptive["threat_model"].items()
    _, static = run(NOISY, tmp_path, "pgd-3", source=STATIC)
    stated |= {"eot": None, "source": "static"}
    assert stated.items() <= static["threat_model"].items()
    _, exact = run(PLAIN, tmp_path, "pgd-3")
    assert {"eot", "draws", "rule"}.isdisjoint(exact["threat_model"])
    assert exact["threat_model"]["backward"] == "exact"
    _, plain = run(NET, tmp_path, "pgd-3", loader=data(PLAIN))
    assert plain["threat_model"]["source"] == "white-box"
    assert "backward" not in plain["threat_model"]
    assert plain["correct"] == exact["correct"]


def test_clean_accuracy_has_the_verdicts_rule(tmp_path):
    counts = {}
    for rule in ("all", "majority", "one"):
        (clean,) = evaluate(
            NOISY, data(), EvaluationRequest(draws=Draws(1, 5, rule)), fingerprint="model"
        )
        counts[rule] = clean["correct"]
    images, labels = data().dataset.tensors
    from apd.attacks.stream import row_seed

    right = torch.stack(
        [
            noisy_logits(images, torch.tensor([row_seed(0, 2, i, k) for i in range(N)])).argmax(1)
            == labels
            for k in range(5)
        ]
    ).sum(0)
    assert counts["all"] == int((right == 5).sum())
    assert counts["majority"] == int((right >= 3).sum())
    assert counts["all"] < counts["majority"]
    assert counts["one"] != counts["all"]


def test_a_model_without_gradients_is_only_attacked_without_them(tmp_path):
    model = quantised("none")
    with pytest.raises(UserError, match="pgd needs gradients"):
        run(model, tmp_path, "pgd-3", checks=True)
    _, record = run(model, tmp_path, "square-30", checks=True)
    assert record["checks"]["unbounded"] is None


# -- verdicts repeat ------------------------------------------------------------------------------

ATTACKS = ("pgd-4", "autoattack-rand-3", "square-20")


@pytest.mark.parametrize("batch_size", [1, 5, 32])
def test_verdicts_do_not_depend_on_batches(tmp_path, batch_size):
    run(NOISY, tmp_path / "whole", *ATTACKS)
    run(NOISY, tmp_path / "other", *ATTACKS, loader=data(batch_size=batch_size))
    assert lost_to(tmp_path / "whole") == lost_to(tmp_path / "other")


def test_verdicts_depend_on_the_seed(tmp_path):
    run(NOISY, tmp_path / "one", *ATTACKS)
    run(NOISY, tmp_path / "other", *ATTACKS, seed=1)
    assert lost_to(tmp_path / "one") != lost_to(tmp_path / "other")


def test_shards_have_the_verdicts_of_the_whole(tmp_path):
    whole = run(NOISY, tmp_path / "whole", *ATTACKS)
    for shard in reversed(Shard.all(3)):
        run(NOISY, tmp_path / "parts", *ATTACKS, shard=shard)
    request = EvaluationRequest.within(
        THREAT, ATTACKS, store=tmp_path / "parts", draws=DRAWS, checks=False
    ).of(NOISY)
    merged = Merger(request, Images(data(), 0, 3), "model").records()
    assert [r["correct"] for r in merged] == [r["correct"] for r in whole]
    assert lost_to(tmp_path / "whole") == lost_to(tmp_path / "parts")


def _child(store, kill_at):
    save = AttackState.save

    def saving(state, path):
        nonlocal kill_at
        save(state, path)
        kill_at -= 1
        if not kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    AttackState.save = saving
    run(NOISY, store, *ATTACKS)


def test_a_killed_evaluation_goes_on_to_the_same_verdicts(tmp_path):
    run(NOISY, tmp_path / "whole", *ATTACKS)
    kills = 0
    for kill_at in (1, 2, 3, 1, 2):
        process = multiprocessing.get_context("fork").Process(
            target=_child, args=(tmp_path / "killed", kill_at)
        )
        process.start()
        process.join(60)
        kills += process.exitcode == -signal.SIGKILL
    assert kills >= 3
    run(NOISY, tmp_path / "killed", *ATTACKS)
    assert lost_to(tmp_path / "whole") == lost_to(tmp_path / "killed")


# -- flags ----------------------------------------------------------------------------------------


def flags(model, tmp_path, *evaluations, threat=THREAT):
    """Of the last of these evaluations: pairs of attack and source."""
    for attack, source in evaluations:
        more = {"source": source} if source else {}
        run(model, tmp_path, attack, threat=threat, **more)
    attack, source = evaluations[-1]
    from apd.evaluate.flags import add_flags

    kept = verdicts(tmp_path)
    records = {key: v.record for key, v in kept.items()}
    add_flags(list(records.values()), {v.record["key"]: v.stands for v in kept.values()})
    return records[attack, source.name if source else "adaptive"]["flags"]


@pytest.mark.parametrize("attack", ["pgd-8", "square-300"])
def test_static_overstates(tmp_path, attack):
    text = flags(MIRRORED, tmp_path, (attack, None), ("pgd-8", STATIC))["static-overstates"]
    assert "which knows the defence" in text and "95 % interval" in text
    assert flags(PLAIN, tmp_path / "quiet", (attack, None), ("pgd-8", STATIC)) == {}


def test_static_overstates_only_under_the_same_threat(tmp_path):
    run(MIRRORED, tmp_path, "pgd-8", threat=ThreatModel("linf", eps=9, alpha=3, steps=8))
    found = verdicts(tmp_path)
    assert len(found) == 1
    other = tmp_path / "other"
    assert flags(MIRRORED, other, ("pgd-8", STATIC)) == {}


@pytest.mark.parametrize("other", [("square-300", None), ("pgd-8", STATIC)])
def test_a_black_box_beats_the_white_box(tmp_path, other):
    name = "black-box-beats-white-box"
    assert name in flags(quantised("exact"), tmp_path, other, ("pgd-8", None))
    assert name not in flags(quantised("surrogate"), tmp_path / "quiet", other, ("pgd-8", None))


def test_not_zero_at_a_large_eps(tmp_path):
    large = ThreatModel("linf", eps=128, alpha=16, steps=16)
    name = "not-zero-at-large-eps"
    assert name in flags(DEAF, tmp_path, ("pgd-8", None), threat=large)
    assert name not in flags(PLAIN, tmp_path / "quiet", ("pgd-16", None), threat=large)
    assert name not in flags(DEAF, tmp_path / "small", ("pgd-8", None))
