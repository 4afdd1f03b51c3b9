"""One request says what is asked for; files of verdicts keep the names that they always had."""

import pickle
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from apd.attacks import ThreatModel
from apd.config import default
from apd.errors import UserError
from apd.evaluate import EvaluationRequest, Shard, Source, evaluate
from apd.evaluate.shards import Images, Merger

THREAT = ThreatModel("linf", eps=2, alpha=1, steps=2)


def logits(images):
    return torch.stack([images.mean((1, 2, 3)), 0.5 - images[:, 0].mean((1, 2))], dim=1)


@pytest.fixture
def loader():
    images = torch.arange(8 * 3 * 4 * 4).view(8, 3, 4, 4) / 400
    return DataLoader(TensorDataset(images, torch.arange(8) % 2), 4)


def test_files_of_earlier_versions_are_found(loader, tmp_path):
    """These names were made by version 0.1.0, before there were requests."""

    def request(*attacks, **more):
        return EvaluationRequest.within(THREAT, attacks, store=tmp_path, **more)

    def found(suffix):
        return {path.name.partition(".")[0] for path in tmp_path.rglob(f"*{suffix}")}

    source = Source("transfer:x", (logits,), "other")
    for asked in (
        request("pgd-2", "autoattack-1", seed=3),
        request(subset=6, source=source, precision="bf16"),
        request("fgsm", shard=Shard(2, 3)),
    ):
        evaluate(logits, loader, asked, fingerprint="model")
    assert found(".json") == {"2ef16a8a85c893b1", "521beb8c9cadde9d", "f7d294b924c3cb7b"}
    assert found(".done.pt") == {"60504e546437e0cf", "d270a5dbd2afd1ba"}


def test_any_callable_is_evaluated_and_a_module_is_its_own_fingerprint(loader, tmp_path):
    request = EvaluationRequest.within(THREAT, store=tmp_path)
    assert evaluate(logits, loader, EvaluationRequest())[0]["total"] == 8
    with pytest.raises(UserError, match="give its fingerprint"):
        evaluate(logits, loader, request)
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    for _ in range(2):
        _, record = evaluate(net, loader, request)
        assert [path.stem for path in tmp_path.iterdir()] == [record["key"]]
    with torch.no_grad():
        net[1].bias.add_(1)
    evaluate(net, loader, request)
    assert len(list(tmp_path.iterdir())) == 2


def test_attacks_on_a_source_that_is_not_loaded_never_pass_for_attacks_on_it(loader):
    request = EvaluationRequest.within(THREAT, source=Source("transfer:zeroshot"))
    with pytest.raises(ValueError, match="transfer:zeroshot are not loaded"):
        evaluate(logits, loader, request)


def test_a_shards_request_reaches_another_process(loader, tmp_path):
    attacks = ("pgd-2", "cw", "apgd-t-3", "square-5", "autoattack-1")
    source = Source("transfer:x", (lambda images: images.flatten(1),), "other")
    request = EvaluationRequest.within(THREAT, attacks, store=tmp_path, source=source)
    sent = Merger(request, Images(loader, 0, 2), "model").shard_request(Shard(2, 2))
    received = pickle.loads(pickle.dumps(sent))
    assert received.shard == Shard(2, 2) and received.source == Source("transfer:x")
    assert [received.conditions(a) for a in received.attacks] == [
        request.conditions(a) for a in request.attacks
    ]


def test_a_config_asks_for_what_its_keys_say():
    cfg = default()
    plain = EvaluationRequest.from_config(cfg)
    assert plain == replace(EvaluationRequest(), draws=plain.draws)
    cfg.AT.TEST.ATTACKS = ["fgsm"]
    with pytest.raises(UserError, match="AT.TEST.EPS is not set"):
        EvaluationRequest.from_config(cfg)
    cfg.AT.TEST.EPS, cfg.AT.TEST.ALPHA, cfg.AT.TEST.SUBSET = 2.0, 0.5, 7
    cfg.AT.TEST.LAST_ITERATE, cfg.TEST.SPLIT, cfg.SEED = True, "val", 5
    request = EvaluationRequest.from_config(cfg)
    assert (request.split, request.subset, request.seed) == ("val", 7, 5)
    (fgsm,) = request.attacks
    assert fgsm.name == "fgsm" and fgsm.conditions["last_iterate"]
    cfg.AT.TEST.ATTACKS = []
    (pgd,) = EvaluationRequest.from_config(cfg).attacks
    assert pgd.name == "pgd-100" and pgd.conditions["alpha"] == 0.5


def test_an_unknown_precision_is_refused():
    with pytest.raises(UserError, match="precision is fp8"):
        EvaluationRequest(precision="fp8")
