import pytest
import torch

from apd.host import build_optimizer, get_cfg_default


def make_cfg(name, **options):
    cfg = get_cfg_default().OPTIM
    cfg.merge_from_list(["NAME", name, "LR", 0.02, "WEIGHT_DECAY", 0.01])
    for key, value in options.items():
        cfg[key] = value
    return cfg


def train(model, optimizer, steps=12):
    """Weights after some steps on a fixed least-squares problem."""
    inputs = torch.linspace(-1, 1, 40).reshape(10, 4)
    for _ in range(steps):
        optimizer.zero_grad()
        (model(inputs) - 1).square().mean().backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def make_model():
    torch.manual_seed(0)
    return torch.nn.Linear(4, 2)


@pytest.mark.parametrize(
    "name, cls, options",
    [
        ("adam", torch.optim.Adam, {"betas": (0.9, 0.999)}),
        ("amsgrad", torch.optim.Adam, {"betas": (0.9, 0.999), "amsgrad": True}),
        ("adamw", torch.optim.AdamW, {"betas": (0.9, 0.999)}),
        ("sgd", torch.optim.SGD, {"momentum": 0.9}),
        ("rmsprop", torch.optim.RMSprop, {"momentum": 0.9, "alpha": 0.99}),
        ("radam", torch.optim.RAdam, {"betas": (0.9, 0.999), "decoupled_weight_decay": True}),
    ],
)
def test_same_steps_as_torch(name, cls, options):
    model, reference = make_model(), make_model()
    found = train(model, build_optimizer(model, make_cfg(name)))
    expected = train(reference, cls(reference.parameters(), lr=0.02, weight_decay=0.01, **options))
    assert torch.allclose(found, expected, atol=1e-6)


def test_sgd_options_are_read():
    cfg = make_cfg("sgd", MOMENTUM=0.5, SGD_NESTEROV=True)
    (group,) = build_optimizer(make_model(), cfg).param_groups
    assert (group["momentum"], group["nesterov"], group["dampening"]) == (0.5, True, 0)


def test_takes_parameters_and_groups_too():
    weight = torch.nn.Parameter(torch.zeros(1))
    assert build_optimizer([weight], make_cfg("sgd")).param_groups[0]["params"] == [weight]
    groups = [{"params": [weight], "lr": 0.5}]
    (group,) = build_optimizer(None, make_cfg("sgd"), param_groups=groups).param_groups
    assert group["lr"] == 0.5


def test_staged_rates():
    model = torch.nn.Sequential()
    model.add_module("body", torch.nn.Linear(2, 2))
    model.add_module("head", torch.nn.Linear(2, 3))
    cfg = make_cfg("sgd", STAGED_LR=True, NEW_LAYERS=("head",), BASE_LR_MULT=0.25)
    body, head = build_optimizer(model, cfg).param_groups
    assert (body["lr"], head["lr"]) == (0.005, 0.02)
    assert [p.shape for p in head["params"]] == [(3, 2), (3,)] and len(body["params"]) == 2


def test_unknown_optimizer_is_a_value_error():
    with pytest.raises(ValueError, match="sdg"):
        build_optimizer(make_model(), make_cfg("sdg"))
