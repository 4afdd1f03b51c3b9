"""Every attack by name: what it returns, and that nothing else about the model or batch matters."""

from pathlib import Path

import pytest
import torch
import torchattacks
from hypothesis import given, settings
from hypothesis import strategies as st
from test_pgd import Net, batch, own_labels

from apd.attack_catalog import ATTACKS
from apd.attacks import ThreatModel, find_attack, seeded_start
from apd.attacks.library import _Model
from apd.attacks.stream import Supply
from apd.choices import NORMS
from apd.errors import UserError

STEPS = {"fab-t": 3, "square": 30, "cw-l2": 20}  # of the others: 5
EVERY = [
    (name if attack.steps_in_name == "never" else f"{name}-{STEPS.get(name, 5)}", norm)
    for norm in NORMS
    for name, attack in ATTACKS.items()
    if name != "clean" and not attack.parts and norm in getattr(attack, "norms", NORMS)
]
every = pytest.mark.parametrize(("name", "norm"), EVERY)


def threat(norm="linf", eps=None, **more):
    eps = {"linf": 5.0, "l2": 60.0}[norm] if eps is None else eps
    return ThreatModel(norm, eps, eps / 4, 5, **more)


def attack(name, norm, model, images, labels, batch_size=64, seed=0, eps=None, **more):
    """Verdicts and images, by index."""
    (stage,) = find_attack(name, threat(norm, eps)).stages
    if stage.name == "pgd":
        more["start"] = seeded_start(stage.threat, seed)
    rows = {"index": torch.arange(len(images)), "image": images, "label": labels}
    right, attacked = torch.zeros(len(images), dtype=torch.bool), torch.full_like(images, -1)
    for done, _ in stage.run(Supply([rows]), model, batch_size=batch_size, seed=seed, **more):
        right[done["index"]], attacked[done["index"]] = done["right"], done["attacked"]
    assert attacked.min() >= 0  # every image came back
    return right, attacked


def right_ones(model, n=16, seed=0):
    images, _ = batch(n, seed=seed)
    labels = own_labels(model, images)
    right = model(images).argmax(1) == labels
    return images[right], labels[right]


@every
def test_verdicts_are_those_of_the_images_returned_within_ball_and_box(name, norm):
    model = Net()
    images, labels = right_ones(model)
    right, attacked = attack(name, norm, model, images, labels)
    assert torch.equal(right, model(attacked).argmax(1) == labels)
    assert attacked.min() >= 0 and attacked.max() <= 1 and not attacked.requires_grad
    order = float("inf") if norm == "linf" else 2
    distance = (attacked - images).flatten(1).norm(p=order, dim=1)
    assert distance.max() <= threat(norm).eps / 255 + 1e-6
    assert (distance[~right] > 0).all()


@settings(max_examples=25, deadline=None)
@given(
    which=st.sampled_from(EVERY),
    eps=st.floats(0, 300),
    n=st.integers(1, 4),
    seed=st.integers(0, 99),
    precision=st.sampled_from([None, None, torch.bfloat16]),
)
def test_ball_and_box_hold_for_every_attack(which, eps, n, seed, precision):
    name, norm = which
    images, labels = batch(n + 2, seed=seed)
    _, attacked = attack(
        name, norm, Net(seed), images, labels, eps=eps, seed=seed, precision=precision
    )
    order = float("inf") if norm == "linf" else 2
    distance = (attacked - images).flatten(1).norm(p=order, dim=1).max()
    assert attacked.min() >= 0 and attacked.max() <= 1
    assert distance <= eps / 255 * (1 + 1e-5) + 1e-6


@every
def test_an_image_meets_the_same_attack_in_any_batch(name, norm):
    model = Net()
    images, labels = right_ones(model, 12)
    together = attack(name, norm, model, images, labels)
    for batch_size in (1, 5):
        apart = attack(name, norm, model, images, labels, batch_size=batch_size)
        assert torch.equal(together[0], apart[0])
        # sums round differently in batches of other sizes, and a sign or a comparison may turn
        alike = (together[1] - apart[1]).abs() < 1e-4
        assert alike.float().mean() > (0.99 if batch_size > 1 else 0.6)


def test_all_images_meet_the_attacks_random_numbers_but_the_models_are_its_own():
    drawn = []

    def model(images):
        drawn.append(torch.rand(images.shape))
        return Net()(images) + 0 * drawn[-1].sum()

    gray = torch.full((3, 3, 8, 8), 0.5)
    labels = Net()(gray).argmax(1)
    _, attacked = attack("apgd-ce-5", "linf", model, gray, labels, eps=100)
    assert torch.equal(attacked[0], attacked[1]) and not torch.equal(attacked[0], gray[0])
    assert all(not torch.equal(noise[0], noise[1]) for noise in drawn if len(noise) > 1)


@every
def test_a_seed_fixes_the_attack_and_nothing_is_left_behind(name, norm):
    model = Net()
    images, labels = right_ones(model)
    before, state = images.clone(), torch.get_rng_state()
    weight = model.head.weight.clone()
    first = attack(name, norm, model, images, labels, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(1)
    second = attack(name, norm, model, images, labels, seed=1)
    assert torch.equal(first[1], second[1])
    assert torch.equal(images, before) and torch.equal(model.head.weight, weight)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert model.training


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("classes", [2, 3, 7])
@pytest.mark.parametrize("name", ["apgd-t-5", "fab-t-3"])
def test_targeted_attacks_run_on_the_classes_there_are(name, norm, classes, monkeypatch):
    made = []
    for kind in (torchattacks.APGDT, torchattacks.FAB):
        perturb = kind.perturb

        def spy(self, *args, perturb=perturb, **more):
            made.append(self.n_target_classes)
            return perturb(self, *args, **more)

        monkeypatch.setattr(kind, "perturb", spy)

    def model(images):  # the first classes of a larger model
        return Net()(images)[:, :classes] if classes < 5 else Net()(images).repeat(1, 2)[:, :7]

    images, _ = batch(12)
    labels = model(images).argmax(1)
    right, attacked = attack(name, norm, model, images, labels, eps=30 if norm == "linf" else 300)
    assert set(made) == {classes - 1}
    assert 0 < (~right).sum()
    assert torch.equal(right, model(attacked).argmax(1) == labels)


def test_of_many_classes_nine_are_targets():
    attack = find_attack("apgd-t", threat()).stages[0]
    model = _Model(lambda x: x.mean(dim=(1, 2, 3))[:, None] * torch.ones(1000), batch()[0], None)
    settings = {"norm": "Linf", "eps": 0.1, "seed": 0, "n_classes": 10, "eot_iter": 1}
    assert attack.build(model, settings).n_target_classes == 9


def test_one_class_has_no_targets():
    with pytest.raises(UserError, match="2 classes"):
        attack("apgd-t", "linf", lambda x: x[:, :1, 0, 0], batch()[0], torch.zeros(12).long())


def theirs(name, model, norm, eps):
    """torchattacks' own, as its documentation has it called; None: an attack that is ours alone."""
    norm = {"linf": "Linf", "l2": "L2"}[norm]
    made = {
        "difgsm-5": lambda: torchattacks.DIFGSM(model, eps=eps, alpha=eps / 4, steps=5),
        "apgd-ce-5": lambda: torchattacks.APGD(model, norm, eps, steps=5),
        "apgd-dlr-5": lambda: torchattacks.APGD(model, norm, eps, steps=5, loss="dlr"),
        "apgd-t-5": lambda: torchattacks.APGDT(model, norm, eps, steps=5, n_classes=5),
        "fab-t-3": lambda: torchattacks.FAB(
            model, norm, eps, steps=3, multi_targeted=True, n_classes=5
        ),
        "square-30": lambda: torchattacks.Square(model, norm, eps, n_queries=30),
        "fgsm": lambda: torchattacks.FGSM(model, eps=eps),
        "cw-l2-20": lambda: torchattacks.CW(model, steps=20),
    }
    return made[name]() if name in made and (name, norm) != ("fgsm", "L2") else None


@every
def test_one_image_meets_torchattacks_own(name, norm):
    """A batch of one has no noise to share. (PGD: tests/attacks/test_pgd.py.)"""
    model = Net().eval()
    if theirs(name, model, norm, eps=1) is None:
        pytest.skip("ours alone")
    images, labels = right_ones(model)
    if name.startswith("cw-l2"):  # where theirs is sound: off the walls, positive logits
        images = images.clamp(0.05, 0.95)
        net = model
        model = torch.nn.Sequential(net, torch.nn.Threshold(-1e9, 0))
        net.head.bias.data += 10
        right = model(images).argmax(1) == labels
        images, labels = images[right], labels[right]
    for i in range(4):
        one = images[i : i + 1], labels[i : i + 1]
        right, attacked = attack(name, norm, model, *one)
        torch.manual_seed(0)
        expected = theirs(name, model, norm, threat(norm).eps / 255)(*one).detach()
        if name.startswith("cw-l2"):  # it has no ball
            delta = expected - one[0]
            expected = one[0] + delta * (threat(norm).eps / 255 / delta.norm()).clamp(max=1)
        assert right == (model(expected).argmax(1) == one[1])
        if name.startswith("apgd") and not right:
            continue  # theirs goes on, ours returns the first iterate that fools the model
        torch.testing.assert_close(attacked, expected, rtol=0, atol=2e-6)


def test_cw_l2_moves_pixels_off_the_walls():
    def model(images):  # wrong when brighter than black
        brightness = images.mean(dim=(1, 2, 3))
        return torch.stack([brightness * 0 + 0.1, 50 * brightness], dim=1)

    black, labels = torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.long)
    right, attacked = attack("cw-l2-200", "l2", model, black, labels)
    assert not right.any() and 0 < attacked.min()


def test_autoattack_is_torchattacks_and_the_worst_of_its_parts():
    model = Net(scale=3).eval()
    images, labels = right_ones(model, 50)
    parts = ["apgd-ce-10", "apgd-t-10", "fab-t-10", "square-200"]
    worst = torch.ones(len(images), dtype=torch.bool)
    for name in parts:
        worst &= attack(name, "linf", model, images, labels, eps=6)[0]
    alive = torch.arange(len(images))
    for name in parts:  # in sequence, on survivors
        (stage,) = find_attack(name, threat(eps=6)).stages
        rows = {"index": alive, "image": images[alive], "label": labels[alive]}
        done = [d for d, _ in stage.run(Supply([rows]), model, batch_size=64)]
        alive = torch.cat([d["index"][d["right"]] for d in done])
    assert alive.tolist() == worst.nonzero()[:, 0].tolist()
    theirs = torchattacks.AutoAttack(model, eps=6 / 255, n_classes=5, seed=0)
    theirs._autoattack.attacks[-1].n_queries = 200
    standing = model(theirs(images, labels)).argmax(1) == labels
    assert abs(int(standing.sum()) - len(alive)) <= 1  # other random numbers
    assert 5 < len(alive) < len(images) - 5


def test_autoattack_has_the_standards_parts_and_budget():
    found = find_attack("autoattack", threat())
    assert [stage.name for stage in found.stages] == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert found.conditions["steps"] == 100
    model = _Model(Net(), batch()[0], None)
    settings = {"norm": "Linf", "eps": 0.1, "seed": 0, "n_classes": 5, "eot_iter": 1}
    built = [stage.build(model, settings) for stage in found.stages]
    assert [b.steps for b in built[:3]] == [100] * 3 and built[3].n_queries == 5000
    assert [b.n_restarts for b in built] == [1] * 4
    assert built[2].multi_targeted


def test_names_set_steps_and_conditions_say_them():
    base = threat(restarts=2, loss="kl")
    assert find_attack("clean", base).stages == ()
    pgd = find_attack("PGD-7", base, last_iterate=True).conditions
    assert (pgd["steps"], pgd["restarts"], pgd["loss"], pgd["last_iterate"]) == (7, 2, "kl", True)
    fgsm = find_attack("fgsm", base).conditions
    assert (fgsm["steps"], fgsm["alpha"], fgsm["random_start"]) == (1, 5.0, False)
    assert find_attack("cw", base).conditions["loss"] == "margin"
    assert find_attack("cw", base).conditions["steps"] == 5
    assert find_attack("square-77", base).conditions["steps"] == 77
    assert find_attack("fab-t", base).conditions["alpha"] is None


@pytest.mark.parametrize(
    ("name", "norm", "told"),
    [
        ("pgd", "linf", "unknown attack"),
        ("bim-10", "linf", "pgd-<steps>"),
        ("", "linf", "unknown attack"),
        ("difgsm", "l2", "difgsm is an linf attack"),
        ("cw-l2", "linf", "cw-l2 is an l2 attack"),
        ("square-0", "linf", "1 step or more"),
    ],
)
def test_what_there_is_not_is_told(name, norm, told):
    with pytest.raises(UserError, match=told):
        find_attack(name, threat(norm))


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_has_its_row_in_the_documentation(name):
    text = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    rows = text.split("## Attacks")[1].split("\n## ")[0].splitlines()
    written = "pgd-<k>" if name == "pgd" else name
    assert any(f"`{written}`" in row.split("|")[1] for row in rows if row.startswith("|"))


def test_only_clean_needs_no_threat_model():
    assert find_attack("clean", None).stages == ()
    with pytest.raises(UserError, match='attack "pgd-10" needs a threat model: give its eps'):
        find_attack("pgd-10", None)
