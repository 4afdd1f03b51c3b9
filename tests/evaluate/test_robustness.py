"""apd.robustness: any model, in any form of data, is judged as our own runs are."""

import json
import multiprocessing
import os
import shutil
import signal

import numpy as np
import pytest
import torch
from PIL import Image
from test_flags import NET, Net, broken, deaf, quantised, random_forward, saturated, softmaxed
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import apd
from apd.attacks import DefendedModel
from apd.evaluate.state import AttackState

EPS = 8 / 255


class Double(nn.Module):
    """``NET``'s function in float64: batches of other sizes round their sums differently."""

    def __init__(self, seed=0, mean=0.5):
        super().__init__()
        self.mean = mean
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            layers = [nn.Flatten(), nn.Linear(192, 32), nn.Tanh(), nn.Linear(32, 4)]
            self.layers = nn.Sequential(*layers).double()

    def level(self):
        """``mean``, of whatever kind it is."""
        mean = self.mean["all"] if isinstance(self.mean, dict) else self.mean
        return float(np.mean(np.asarray(mean)))

    def forward(self, images):
        return 8 * self.layers(images.double() - self.level()).float()


class Other(Double):
    """The same, but nothing that is read of it tells."""


PLAIN, NET64 = Net().eval(), Double().eval()  # PLAIN equals NET


def labelled(n=24, seed=1, model=NET):
    """Images (N, 3, 8, 8) and the model's own labels, each eighth of them changed."""
    images = torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    images[:6, 0, 0, 0] = 1.0
    labels = model(images).argmax(1).detach()
    labels[::8] = (labels[::8] + 1) % 4
    return images, labels


DATA = IMAGES, LABELS = labelled()


def found(model=NET64, data=DATA, attacks=("pgd-10",), eps=EPS, **more):
    return apd.robustness(model, data, eps=eps, attacks=attacks, **more)


def told(report):
    """What the records say, but for times and for what verdicts are kept by."""
    left_out = ("seconds", "key")
    return [{k: v for k, v in one.items() if k not in left_out} for one in report.evaluations]


def refused(*parts, **more):
    with pytest.raises(apd.UserError) as error:
        found(**more)
    message = str(error.value)
    assert "\n" not in message and all(part in message for part in parts), message


# -- verdicts and flags ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model, flag",
    [
        (quantised, "zero-gradients"),
        (saturated, "zero-gradients"),
        (broken, "broken-gradients"),
        (random_forward, "random-logits"),
        (softmaxed, "probabilities"),
        (deaf, "unbounded"),
    ],
    ids=lambda one: getattr(one, "__name__", one),
)
def test_a_flag_is_raised_by_a_model_that_is_wrong_in_its_way(model, flag):
    with torch.random.fork_rng():
        report = found(model, labelled(model=model))
    assert flag in report.flags and flag in str(report) and f"[1] {flag}: " not in str(found())


def test_gradients_that_mislead_are_flagged_by_attacks_without_them():
    assert "square" in found(quantised, labelled(model=quantised), ["autoattack-4"]).flags


def test_a_plain_model_raises_none_and_its_report_adds_up():
    report = found(PLAIN, attacks=["fgsm", "pgd-10", "apgd-ce-5"], eps=[2 / 255, EPS])
    assert report.flags == {} and report.clean_accuracy == 87.5
    assert [(e["attack"], e["threat_model"]["eps"]) for e in report.evaluations[1:]] == [
        (attack, eps) for eps in (2, 8) for attack in ("fgsm", "pgd-10", "apgd-ce-5")
    ]
    stands = [report.survivors(attack, EPS) for attack in ("fgsm", "pgd-10", "apgd-ce-5")]
    every = 100 * np.logical_and.reduce(stands).mean()
    assert report.robust_accuracy() == report.robust_accuracy(EPS) == every
    assert every < report.robust_accuracy(2 / 255) < 87.5
    right = (NET(DATA[0]).argmax(1) == DATA[1]).numpy()
    assert not (stands[1] & ~right).any()
    assert json.loads(json.dumps(report.to_dict()))["evaluations"] == report.evaluations
    with pytest.raises(apd.UserError, match="pgd-10: name one evaluation of"):
        report.survivors("pgd-10")
    with pytest.raises(apd.UserError, match="no attack within eps 3/255"):
        report.robust_accuracy(3 / 255)


def test_survivors_are_those_of_autoattacks_package():
    package = pytest.importorskip("pyautoattack", reason="AutoAttack's package is not installed")
    images, labels = labelled(40)
    theirs = package.AutoAttack(NET, norm="Linf", eps=3 / 255, seed=0)
    theirs.apgd_targeted.n_target_classes = theirs.fab.n_target_classes = 3
    for part in (theirs.apgd, theirs.apgd_targeted, theirs.fab):
        part.n_iter = 10
    theirs.square.n_queries = 500
    attacked, _ = theirs.run_standard_evaluation(images, labels, batch_size=40)
    stands = (NET(attacked).argmax(1) == labels).numpy()
    ours = found(PLAIN, (images, labels), ["autoattack-10"], 3 / 255).survivors("autoattack-10")
    assert np.array_equal(ours, stands) and 8 < stands.sum() < 32


@pytest.mark.parametrize("norm, eps", [("linf", 1 / 255), ("l2", 0.05)])
def test_the_ball_is_in_pixel_units(norm, eps, tmp_path):
    report = found(PLAIN, eps=eps, norm=norm, save_adv=tmp_path)
    (path,) = tmp_path.rglob("*.npz")
    saved = np.load(path)
    moved = torch.from_numpy(saved["attacked"][saved["right"]])
    clean = IMAGES[saved["index"][saved["right"]]]
    assert len(clean) == report.survivors("pgd-10").sum() > 10
    order = torch.inf if norm == "linf" else 2
    away = torch.linalg.vector_norm((moved - clean).flatten(1), order, dim=1)
    assert torch.allclose(away, torch.full_like(away, eps), rtol=1e-3)


# -- data ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Folder of class folders; and its images and labels as tensors."""
    folder, images, labels = tmp_path_factory.mktemp("pictures"), [], []
    draw = np.random.default_rng(0)
    for label, name in enumerate(["a_cat", "dog", "emu", "fox"]):
        (folder / name).mkdir()
        for i in range(4):
            pixels = draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
            images.append(torch.from_numpy(pixels).permute(2, 0, 1) / 255)
            labels.append(label)
    return folder, torch.stack(images), torch.tensor(labels)


def test_all_forms_of_data_are_the_same_evaluation(pictures):
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import ToTensor

    folder, images, labels = pictures
    whole = found(data=(images, labels))
    assert 0 < whole.clean_accuracy < 100
    for data in (
        (images.numpy(), labels.numpy()),
        TensorDataset(images, labels),
        DataLoader(TensorDataset(images, labels), 5),
        folder,
        str(folder),
        ImageFolder(folder),
        ImageFolder(folder, ToTensor()),
    ):
        assert told(found(data=data)) == told(whole)
    assert found(data=folder).dataset == folder.name


def test_of_a_folder_with_train_and_test_the_test_images_are_taken(pictures, tmp_path):
    folder, images, labels = pictures
    shutil.copytree(folder, tmp_path / "test")
    shutil.copytree(folder / "dog", tmp_path / "train" / "dog")
    assert told(found(data=tmp_path)) == told(found(data=(images, labels)))


def test_classes_of_a_folder_are_found_among_the_models(pictures):
    folder, images, labels = pictures
    names = ["fox", "dog", "a cat", "emu"]
    expected = found(data=(images, torch.tensor([2, 1, 3, 0])[labels]))
    assert told(found(data=folder, classes=names)) == told(expected)
    named = Double().eval()
    named.class_names = names
    assert told(found(named, folder)) == told(expected)
    refused("classes that the model lacks: emu", data=folder, classes=["fox", "dog", "a cat", "x"])
    from torchvision.datasets import ImageFolder

    refused(
        "4 classes in the order a_cat, dog, emu and 1 more",
        data=ImageFolder(folder),
        classes=["dog", "a_cat", "emu", "fox"],
    )


FOUR = {"eps": 4}


class Random(TensorDataset):
    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image + 0.1 * torch.rand(()) * (1 - image), label


@pytest.mark.parametrize(
    "told, more",
    [
        (
            "eps is 4: its unit is a difference of pixel values in [0, 1], so write 4/255",
            {"eps": 4},
        ),
        ("alpha is 1: its unit", {"alpha": 1}),
        ("eps is -1: use a number", {"eps": [EPS, -1]}),
        ("eps is '4/255': use a number", {"eps": ["4/255"]}),
        ('unknown attack "pgd"', {"attacks": ["pgd"]}),
        ("attack norm is 'l1': use linf, l2", {"norm": "l1"}),
        ("values from -0.5 to 0.5, but must be in [0, 1]", {"data": (IMAGES - 0.5, LABELS)}),
        ("of torch.uint8, but must be (B, C, H, W)", {"data": ((255 * IMAGES).byte(), LABELS)}),
        ("must be (B, C, H, W)", {"data": (IMAGES[0], LABELS[:3])}),
        ("labels are from 0 to 4, but the model has 4 classes", {"data": (IMAGES, LABELS % 3 * 2)}),
        ("labels are (24, 4)", {"data": (IMAGES, nn.functional.one_hot(LABELS, 4))}),
        ("labels are (24,) of torch.float32", {"data": (IMAGES, LABELS.float())}),
        ("one label per image", {"data": (IMAGES, LABELS[:5])}),
        ("no images", {"data": (IMAGES[:0], LABELS[:0])}),
        ("data is a int: use (images, labels)", {"data": 3}),
        ("no pair (image, label)", {"data": [1, 2, 3]}),
        ("shuffles", {"data": DataLoader(TensorDataset(*DATA), 8, shuffle=True)}),
        ("drop_last", {"data": DataLoader(TensorDataset(*DATA), 7, drop_last=True)}),
        ("other images in each pass", {"data": Random(*DATA)}),
        ("there is no folder", {"data": "nowhere"}),
        ("training mode: call model.eval()", {"model": Double()}),
        ("gives (24, 4, 1) of torch.float32", {"model": lambda x: NET(x)[..., None]}),
        ("gives a tuple", {"model": lambda x: (NET(x),)}),
        ("fails on images (24, 3, 8, 8)", {"model": nn.Linear(3, 4).eval()}),
        ("have no gradient", {"model": torch.no_grad()(NET.forward)}),
        ("has 4 classes, the data 3 (a, b, c)", {"classes": "abc"}),
        ("shards are kept in a folder", {"shard": "1/2"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_fit_is_refused_in_one_line(told, more):
    refused(told, **more)


def test_images_of_several_sizes_need_preprocess(tmp_path):
    for i, size in enumerate([8, 8, 9, 10]):
        (tmp_path / str(i)).mkdir()
        Image.new("RGB", (size, size), (60 * i, 9, 9)).save(tmp_path / str(i) / "x.png")
    refused("image 2 is (3, 9, 9)", "give preprocess", data=tmp_path)

    def preprocess(image):
        return torch.from_numpy(np.array(image.resize((8, 8)))).permute(2, 0, 1) / 255

    assert found(data=tmp_path, preprocess=preprocess).evaluations[0]["total"] == 4


# -- what is kept ----------------------------------------------------------------------------------


def kept(store):
    found = [json.loads(p.read_text()) for p in sorted((store / "evaluations").glob("*.json"))]
    for one in found:
        del one["record"]["seconds"]
    return found


ATTACKS = ("pgd-10", "autoattack-1")


def _child(store, number):
    save = AttackState.save

    def saving(state, path):
        nonlocal number
        save(state, path)
        number -= 1
        if not number:
            os.kill(os.getpid(), signal.SIGKILL)

    AttackState.save = saving
    found(attacks=ATTACKS, store=store, batch_size=4)


def test_a_killed_evaluation_goes_on_to_the_same(tmp_path):
    whole = found(attacks=ATTACKS, store=tmp_path / "whole", batch_size=4)
    for number in (2, 1, 3, 2):
        child = multiprocessing.get_context("fork").Process(
            target=_child, args=(tmp_path / "torn", number)
        )
        child.start()
        child.join(60)
        assert child.exitcode == -signal.SIGKILL
        assert not (tmp_path / "torn" / "results.json").exists()
    again = found(attacks=ATTACKS, store=tmp_path / "torn", batch_size=4)
    assert told(again) == told(whole) and kept(tmp_path / "torn") == kept(tmp_path / "whole")
    assert told(found(attacks=ATTACKS)) == told(whole)  # in other batches, nothing kept


def test_shards_merge_to_the_same(tmp_path):
    whole = found(attacks=ATTACKS, store=tmp_path / "whole")
    parts = {"attacks": ATTACKS, "store": tmp_path / "parts"}
    found(shard="2/3", **parts)
    refused("of its shards, 1/3, 3/3 of this evaluation have not ended", merge=True, **parts)
    for shard in ("1/3", "3/3"):
        assert found(shard=shard, **parts).evaluations[0]["total"] == 8
    assert told(found(merge=True, **parts)) == told(whole)
    assert kept(tmp_path / "parts") == kept(tmp_path / "whole")
    assert list((tmp_path / "parts").rglob("*.pt")) == []


def passes(model, store, name="f", data=DATA):
    """How many images a function is given in an evaluation, beside the clean ones."""
    count = 0

    def counted(images):
        nonlocal count
        count += len(images) if images.requires_grad or torch.is_grad_enabled() else 0
        return model(images)

    report = found(counted, data, store=store, name=name)
    return count - len(data[0]), told(report)


def test_a_function_is_known_by_its_name_and_its_predictions(tmp_path):
    refused("give its name", model=lambda x: NET(x), store=tmp_path)
    first, report = passes(NET64, tmp_path)
    again, same = passes(NET64, tmp_path)
    assert again < first / 4 and same == report  # the check without bounds only
    with pytest.raises(apd.UserError, match="results of another model or data .method f, not g"):
        passes(NET64, tmp_path, name="g")
    with pytest.raises(apd.UserError, match="another model or data .fingerprint"):
        passes(Double(seed=5), tmp_path)


@pytest.mark.parametrize(
    "other",
    [
        Double(seed=1),
        Double(mean=0.4),
        Double(mean=torch.tensor(0.5)),
        Double(mean=np.array(0.4)),
        Double(mean=[0.5, 0.5]),
        Double(mean={"all": 0.5}),
        Other(),
        type("Double", (Double,), {"forward": lambda self, x: 8 * self.layers(x.double() - 0.4)})(),
    ],
    ids=["weights", "number", "tensor", "array", "list", "dict", "class", "code"],
)
def test_a_module_is_known_by_all_that_it_computes_with(other, tmp_path):
    found(store=tmp_path)
    found(Double().eval(), store=tmp_path, attacks=["fgsm"])  # the same once more
    refused("results of another model", model=other.eval(), store=tmp_path, name="Double")
    (tmp_path / "results.json").unlink()
    found(other.eval(), store=tmp_path)
    assert len({one["identity"]["model"] for one in kept(tmp_path)}) == 2


def test_what_a_model_says_of_itself_is_heeded(tmp_path):
    def logits(images, seeds):
        return PLAIN(images).detach()

    model = DefendedModel(logits, randomised=False, backward="none")
    refused("pgd needs gradients, and the model has none: use square", model=model)
    report = found(model, attacks=["square-100"])
    plain = found(PLAIN, attacks=["square-100"])
    assert np.array_equal(report.survivors("square-100"), plain.survivors("square-100"))

    def noisy(images, seeds):
        draws = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        noise = [torch.randn(images.shape[1:], generator=draw) for draw in draws]
        return PLAIN(images + 0.05 * torch.stack(noise))

    model = DefendedModel(noisy, randomised=True)
    first, again = (
        found(model, store=tmp_path, name="noisy", eot=2, draws=3, rule="all") for _ in "12"
    )
    assert told(first) == told(again) and "random-logits" not in first.flags
    threat = first.evaluations[1]["threat_model"]
    assert (threat["eot"], threat["draws"], threat["rule"]) == (2, 3, "all")


def test_other_images_need_another_folder(tmp_path):
    found(store=tmp_path)
    refused("on other images: choose another folder", data=labelled(seed=2), store=tmp_path)
    refused("(dataset images, not Other)", dataset="Other", store=tmp_path)
    found(store=tmp_path, subset=10)
    found(store=tmp_path, attacks=["fgsm"])
    results = json.loads((tmp_path / "results.json").read_text())
    assert [(e["attack"], e["images"] == "all") for e in results["evaluations"]] == [
        *(("clean", True), ("clean", False)),
        *(("pgd-10", True), ("pgd-10", False), ("fgsm", True)),
    ]


def test_the_callers_settings_draws_and_weights_stay(tmp_path):
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    model, state = Double().eval(), torch.get_rng_state()
    torch.set_float32_matmul_precision("high")
    try:
        found(model, attacks=["pgd-10", "apgd-ce-5"], store=tmp_path)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before[0])
    assert torch.backends.cudnn.allow_tf32 == before[1]
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training and all(p.grad is None for p in model.parameters())
