"""Datasets, few-shot draws, loaders, samplers."""

import random
from collections import Counter

import pytest
import torch
from PIL import Image

from apd.errors import UserError
from apd.host import (
    DataManager,
    DatasetBase,
    DatasetWrapper,
    Datum,
    build_data_loader,
    build_sampler,
    build_transform,
    set_random_seed,
)


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "image.png"
    Image.new("RGB", (20, 14), (255, 0, 51)).save(path)
    return str(path)


def make_items(image, labels, domains=None):
    """One Datum a label, with its position in the list as its class name."""
    domains = domains or [0] * len(labels)
    return [
        Datum(image, label, domain, str(i))
        for i, (label, domain) in enumerate(zip(labels, domains))
    ]


def names(items):
    return [int(item.classname) for item in items]


def test_datum_is_read_only_and_wants_a_file(image):
    datum = Datum(impath=image, label=2, domain=1, classname="bee")
    assert (datum.impath, datum.label, datum.domain, datum.classname) == (image, 2, 1, "bee")
    with pytest.raises(AttributeError):
        datum.label = 3
    with pytest.raises(AssertionError), pytest.warns(UserWarning):
        Datum(impath=image + ".jpg")


def test_classes_come_from_the_training_split(image):
    train = [Datum(image, 2, 0, "cat"), Datum(image, 0, 0, "ant"), Datum(image, 2, 0, "cat")]
    dataset = DatasetBase(train_x=train, test=train[:1])
    assert dataset.num_classes == 3
    assert dataset.lab2cname == {0: "ant", 2: "cat"} and dataset.classnames == ["ant", "cat"]
    assert dataset.train_x is train and dataset.val is None and dataset.train_u is None


def expected_draw(labels, shots, seed, repeat=False):
    """The draw as its definition says, from a generator of its own."""
    generator, drawn, groups = random.Random(seed), [], {}
    for i, label in enumerate(labels):
        groups.setdefault(label, []).append(i)
    for group in groups.values():  # labels in the order in which they first appear
        if len(group) >= shots:
            group = generator.sample(group, shots)
        elif repeat:
            group = generator.choices(group, k=shots)
        drawn += group
    return drawn


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("shots", [1, 4, 16])
@pytest.mark.parametrize("repeat", [False, True])
def test_few_shot_draw(image, seed, shots, repeat):
    labels = random.Random(0).choices(range(10), weights=range(1, 11), k=200)
    items = make_items(image, labels)
    set_random_seed(seed)
    drawn = DatasetBase(train_x=items).generate_fewshot_dataset(
        items, num_shots=shots, repeat=repeat
    )
    assert names(drawn) == expected_draw(labels, shots, seed, repeat)


def test_few_shot_draws_of_several_lists_share_one_random_state(image):
    items = make_items(image, [0, 1] * 20)
    dataset = DatasetBase(train_x=items)
    set_random_seed(1)
    train, val = dataset.generate_fewshot_dataset(items, items, num_shots=3)
    set_random_seed(1)
    assert names(dataset.generate_fewshot_dataset(items, num_shots=3)) == names(train)
    assert names(dataset.generate_fewshot_dataset(items, num_shots=3)) == names(val)


def test_no_shots_means_all(image):
    items = make_items(image, [0, 1])
    dataset = DatasetBase(train_x=items)
    assert dataset.generate_fewshot_dataset(items) is items
    both = dataset.generate_fewshot_dataset(items, items, num_shots=0)
    assert len(both) == 2 and both[0] is items


def test_splits_by_label_and_domain(image):
    items = make_items(image, [1, 0, 1], domains=[5, 5, 7])
    dataset = DatasetBase(train_x=items)
    by_label = dataset.split_dataset_by_label(items)
    assert list(by_label) == [1, 0] and names(by_label[1]) == [0, 2]
    assert {k: names(v) for k, v in dataset.split_dataset_by_domain(items).items()} == {
        5: [0, 1],
        7: [2],
    }


def test_unknown_domains_are_refused(image):
    dataset = DatasetBase(train_x=make_items(image, [0]))
    dataset.domains = ["photo", "sketch"]
    dataset.check_input_domains(["photo"], ["sketch"])
    with pytest.raises(ValueError, match="sketch"):
        dataset.check_input_domains(["photo"], ["sketsch"])
    with pytest.raises(AssertionError):
        dataset.check_input_domains([], ["sketch"])


def test_batch_keys(image, make_cfg):
    cfg = make_cfg("DATALOADER.RETURN_IMG0", True)
    tfm = build_transform(cfg, is_train=False)
    items = make_items(image, [1, 0], domains=[0, 3])
    loader = build_data_loader(cfg, data_source=items, batch_size=2, tfm=[tfm, tfm], is_train=False)
    batch = next(iter(loader))
    assert set(batch) == {"img", "img2", "img0", "label", "domain", "impath", "index"}
    assert batch["label"].tolist() == [1, 0] and batch["domain"].tolist() == [0, 3]
    assert batch["index"].tolist() == [0, 1] and list(batch["impath"]) == [image] * 2
    assert batch["img"].shape == batch["img2"].shape == batch["img0"].shape == (2, 3, 8, 8)
    assert torch.allclose(batch["img"][0, :, 4, 4], torch.tensor([1, 0, 0.2]))


def test_the_image_without_augmentation_is_stretched_and_normalised(image, make_cfg):
    cfg = make_cfg("DATALOADER.RETURN_IMG0", True, "INPUT.TRANSFORMS", ("normalize",))
    output = DatasetWrapper(cfg, make_items(image, [0]), transform=None, is_train=False)[0]
    assert output["img"].size == (20, 14)  # no transform: the PIL image
    expected = (torch.tensor([1, 0, 0.2]) - torch.tensor(cfg.INPUT.PIXEL_MEAN)) / torch.tensor(
        cfg.INPUT.PIXEL_STD
    )
    assert output["img0"].shape == (3, 8, 8)
    assert torch.allclose(output["img0"][:, 0, 0], expected, atol=1e-6)


def test_k_transforms_gives_lists_in_training_only(image, make_cfg):
    cfg = make_cfg("DATALOADER.K_TRANSFORMS", 2)
    items, tfm = make_items(image, [0]), build_transform(cfg, is_train=False)
    trained = DatasetWrapper(cfg, items, transform=tfm, is_train=True)[0]["img"]
    assert isinstance(trained, list) and len(trained) == 2
    assert torch.is_tensor(DatasetWrapper(cfg, items, transform=tfm, is_train=False)[0]["img"])
    with pytest.raises(ValueError):
        DatasetWrapper(cfg, items, transform=None, is_train=True)


@pytest.mark.parametrize(
    "images, is_train, sizes",
    [
        (10, True, [4, 4]),  # the rest is dropped
        (10, False, [4, 4, 2]),
        (3, True, [3]),  # fewer than a batch: kept
    ],
)
def test_incomplete_batches(image, make_cfg, images, is_train, sizes):
    cfg = make_cfg()
    loader = build_data_loader(
        cfg,
        data_source=make_items(image, [0] * images),
        batch_size=4,
        tfm=build_transform(cfg, is_train=False),
        is_train=is_train,
    )
    assert [len(batch["label"]) for batch in loader] == sizes


def test_no_images_is_an_error(make_cfg):
    with pytest.raises((UserError, AssertionError)):
        build_data_loader(make_cfg(), data_source=[], batch_size=4, is_train=False)


def test_data_manager_builds_what_the_config_says(make_cfg):
    dm = DataManager(make_cfg())
    assert dm.num_classes == 3 and dm.lab2cname == {0: "ant", 1: "bee", 2: "cat"}
    assert dm.num_source_domains == 0 and dm.train_loader_u is None
    assert [len(loader) for loader in (dm.train_loader_x, dm.val_loader, dm.test_loader)] == [
        2,
        1,
        2,
    ]
    labels = [label for batch in dm.test_loader for label in batch["label"].tolist()]
    assert labels == [0, 0, 1, 1, 2]  # in the order of the test split
    assert dm.dataset.classnames == ["ant", "bee", "cat"]


def test_data_manager_takes_transforms_and_wrapper_of_ones_own(make_cfg):
    class Wrapper(DatasetWrapper):
        pass

    dm = DataManager(
        make_cfg(),
        custom_tfm_train=lambda image: torch.zeros(1),
        custom_tfm_test=lambda image: torch.ones(1),
        dataset_wrapper=Wrapper,
    )
    assert isinstance(dm.test_loader.dataset, Wrapper)
    assert next(iter(dm.train_loader_x))["img"].sum() == 0
    assert next(iter(dm.test_loader))["img"].sum() == 4


def test_random_and_sequential_sampler(image):
    items = make_items(image, [0] * 8)
    assert list(build_sampler("SequentialSampler", data_source=items)) == list(range(8))
    torch.manual_seed(3)
    drawn = list(build_sampler("RandomSampler", data_source=items))
    assert drawn != list(range(8)) and sorted(drawn) == list(range(8))
    torch.manual_seed(3)
    assert list(build_sampler("RandomSampler", data_source=items)) == drawn


def test_random_class_sampler_fills_batches_with_whole_classes(image):
    labels = [0] * 8 + [1] * 5 + [2] * 4 + [3]  # class 3 is drawn with replacement
    items = make_items(image, labels)
    set_random_seed(1)
    sampler = build_sampler("RandomClassSampler", data_source=items, batch_size=6, n_ins=2)
    drawn = list(sampler)
    assert drawn and len(drawn) % 6 == 0 and len(sampler) > 0
    for start in range(0, len(drawn), 6):
        counts = Counter(labels[i] for i in drawn[start : start + 6])
        assert sorted(counts.values()) == [2, 2, 2]
    with pytest.raises((UserError, ValueError)):
        build_sampler("RandomClassSampler", data_source=items, batch_size=2, n_ins=4)


@pytest.mark.parametrize("name, n_domain", [("RandomDomainSampler", 2), ("SeqDomainSampler", 0)])
def test_domain_samplers_balance_domains(image, name, n_domain):
    domains = [2] * 6 + [0] * 6 + [1] * 6
    items = make_items(image, [0] * 18, domains)
    set_random_seed(1)
    drawn = list(build_sampler(name, data_source=items, batch_size=6, n_domain=n_domain))
    assert drawn and len(set(drawn)) == len(drawn)
    per_domain = 6 // (n_domain or 3)
    batches = [[domains[i] for i in drawn[s : s + 6]] for s in range(0, len(drawn), 6)]
    for batch in batches:
        assert set(Counter(batch).values()) == {per_domain}
    if name == "SeqDomainSampler":
        assert all(batch == sorted(batch) for batch in batches)


def test_unknown_sampler_is_a_value_error(image):
    with pytest.raises(ValueError, match="RandomSample"):
        build_sampler("RandomSample", data_source=make_items(image, [0]))
