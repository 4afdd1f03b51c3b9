import random
from pathlib import Path

import numpy as np
import pytest
import torch

from apd.datasets.digits import Digits
from apd.datasets.fewshot import Entry, FewShotDataset, subsample_classes
from apd.errors import UserError, listed
from apd.host import Datum


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "image.png"
    path.touch()  # Datum wants a file, and these tests read none
    return str(path)


@pytest.fixture
def items(image):
    """Return a function: pairs (label, class name) to Datum, told apart by their domain."""
    return lambda *pairs: [
        Datum(impath=image, label=label, domain=i, classname=name)
        for i, (label, name) in enumerate(pairs)
    ]


def ids(data):
    return [item.domain for item in data]


CATS_DOGS = [(0, "cat"), (1, "dog")]


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("shots", [1, 2, 4, 8, 16])
def test_draw_is_random_sample_by_label_train_before_val(make_cfg, items, seed, shots):
    # labels appear in the order 2, 0, 1: the draw follows it
    names = {0: "cat", 1: "dog", 2: "hen"}
    order = [2, 0, 1, 1, 0, 2, 0, 2, 1, 0] * 7
    train = items(*((label, names[label]) for label in order))
    val = items(*((label, names[label]) for label in reversed(order)))

    rng, expected = random.Random(seed), []
    for data, k in ((train, shots), (val, min(shots, 4))):
        drawn = []
        for label in dict.fromkeys(item.label for item in data):
            drawn += rng.sample([item for item in data if item.label == label], k)
        expected.append(ids(drawn))

    cfg = make_cfg("Toy", "SEED", seed, "DATASET.NUM_SHOTS", shots)
    dataset = FewShotDataset(cfg, train, val, train)
    assert [ids(dataset.train_x), ids(dataset.val)] == expected
    assert dataset.test == train


def test_validation_images_may_be_more_without_another_training_draw(make_cfg, items):
    data, val = items(*CATS_DOGS * 20), items(*CATS_DOGS * 12)

    def drawn(cls=FewShotDataset, shots=2, **options):
        options = [item for pair in options.items() for item in pair]
        return cls(make_cfg("Toy", "DATASET.NUM_SHOTS", shots, *options), data, val, data)

    coops, everything, six = (drawn(**{"DATASET.VAL_SHOTS": n}) for n in (-1, 0, 6))
    assert len(coops.val) == 4 and len(six.val) == 12 and ids(everything.val) == ids(val)
    assert ids(drawn().train_x) == ids(coops.train_x) == ids(everything.train_x) == ids(six.train_x)
    for shots in (1, 16, -1):
        assert ids(drawn(shots=shots, **{"DATASET.VAL_SHOTS": 6}).val) == ids(six.val)
    with pytest.raises(UserError, match="DATASET.VAL_SHOTS is -2"):
        drawn(**{"DATASET.VAL_SHOTS": -2})


def test_draw_equals_upstream(make_cfg, written):
    """Figures from Dassl c61a1b5's own generate_fewshot_dataset, after its seeding with 1."""
    dataset = Digits(make_cfg("Digits", "DATASET.ROOT", written, "DATASET.NUM_SHOTS", 1))
    index = [int(item.impath[-8:-4]) for item in dataset.train_x]
    assert index == [166, 726, 77, 318, 154, 633, 582, 610, 509, 275]
    index = [int(item.impath[-8:-4]) for item in dataset.val]
    assert index == [832, 956, 799, 919, 930, 984, 803, 943, 895, 855]


def test_draw_neither_depends_on_nor_disturbs_the_random_state(make_cfg, items):
    data = items(*CATS_DOGS * 20)
    cfg = make_cfg("Toy", "DATASET.NUM_SHOTS", 4)
    draws = []
    for state in (5, 6):
        random.seed(state), np.random.seed(state), torch.manual_seed(state)
        before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
        draws.append(ids(FewShotDataset(cfg, data, data, data).train_x))
        assert random.getstate() == before[0]
        assert np.random.get_state()[1].tolist() == before[1]
        assert torch.equal(torch.get_rng_state(), before[2])
    assert draws[0] == draws[1]


def test_without_a_seed_the_present_state_draws(make_cfg, items):
    data = items(*CATS_DOGS * 50)
    cfg = make_cfg("Toy", "DATASET.NUM_SHOTS", 8, "SEED", -1)
    random.seed(5)
    first, second = (ids(FewShotDataset(cfg, data, [], data).train_x) for _ in range(2))
    assert first != second
    random.seed(5)
    assert ids(FewShotDataset(cfg, data, [], data).train_x) == first


def test_no_shots_means_everything(make_cfg, items):
    data = items(*CATS_DOGS * 3)
    dataset = FewShotDataset(make_cfg("Toy"), data, [], data)
    assert dataset.train_x == data and not dataset.val
    assert dataset.classnames == ["cat", "dog"] and dataset.num_classes == 2


def test_too_many_shots_warns_and_uses_what_there_is(make_cfg, items, capsys):
    data = items((0, "cat"), (0, "cat"), (1, "dog"), *[(2, "hen")] * 9)
    dataset = FewShotDataset(make_cfg("Toy", "DATASET.NUM_SHOTS", 8), data, [], data)
    assert [item.label for item in dataset.train_x] == [0] * 2 + [1] + [2] * 8
    (warning,) = [line for line in capsys.readouterr().out.splitlines() if "fewer than 8" in line]
    assert warning.endswith("cat (2), dog (1)")


@pytest.mark.parametrize(
    "subsample, classes", [("base", ["c0", "c1", "c2"]), ("new", ["c3", "c4"])]
)
def test_base_is_the_first_half_rounded_up_and_both_count_from_0(
    make_cfg, items, subsample, classes
):
    data = items(*((label, f"c{label}") for label in range(5)), (4, "c4"))
    cfg = make_cfg("Toy", "DATASET.SUBSAMPLE_CLASSES", subsample)
    dataset = FewShotDataset(cfg, data, data, data)
    assert dataset.classnames == classes
    for split in (dataset.train_x, dataset.val, dataset.test):
        assert ids(split) == [item.domain for item in data if item.classname in classes]
        assert all(classes[item.label] == item.classname for item in split)


def test_base_classes_have_the_images_of_the_draw_over_all_classes(make_cfg, written):
    def draw(subsample):
        options = ("DATASET.NUM_SHOTS", 4, "DATASET.SUBSAMPLE_CLASSES", subsample)
        cfg = make_cfg("Digits", "DATASET.ROOT", written, *options)
        return [item.impath for item in Digits(cfg).train_x]

    assert sorted(draw("base") + draw("new")) == sorted(draw("all"))


@pytest.mark.parametrize("classes", [["1/3/0"], ["two", "seven", "nine", "four"]])
def test_classes_have_the_images_of_the_draw_over_all_classes(make_cfg, written, classes):
    def draw(*options):
        options = ("DATASET.ROOT", written, "DATASET.NUM_SHOTS", 4, *options)
        return Digits(make_cfg("Digits", *options))

    whole, some = draw(), draw("DATASET.CLASSES", classes)
    kept = some.classnames
    assert len(kept) == 4 and kept == [name for name in whole.classnames if name in kept]
    for split in ("train_x", "val", "test"):
        ours, all_of_them = getattr(some, split), getattr(whole, split)
        assert [i.impath for i in ours] == [i.impath for i in all_of_them if i.classname in kept]
        assert all(kept[item.label] == item.classname for item in ours)
    halves = [draw("DATASET.CLASSES", classes, "DATASET.SUBSAMPLE_CLASSES", h) for h in HALVES]
    assert [half.classnames for half in halves] == [kept[:2], kept[2:]]


HALVES = ("base", "new")


def test_parts_share_no_class_and_leave_none_out(make_cfg, items):
    data = items(*((label, f"c{label}") for label in range(7)))
    parts = [
        FewShotDataset(make_cfg("Toy", "DATASET.CLASSES", [f"{k}/3/1"]), data, data, data)
        for k in (1, 2, 3)
    ]
    assert [part.num_classes for part in parts] == [3, 2, 2]
    assert sorted(name for part in parts for name in part.classnames) == [f"c{i}" for i in range(7)]


@pytest.mark.parametrize(
    "options, message",
    [
        (
            ("DATASET.CLASSES", ["cat", "cow"]),
            "FewShotDataset: DATASET.CLASSES: .* no class cow",
        ),
        (("DATASET.CLASSES", ["1/3/0"]), "2 classes cannot be divided into 3 parts"),
        (
            ("DATASET.CLASSES", ["cat"], "DATASET.SUBSAMPLE_CLASSES", "new"),
            "new leaves no",
        ),
        (("DATASET.VAL_TO_TEST", 0.5), "needs DATASET.VAL_SHOTS"),
        (("DATASET.VAL_TO_TEST", 0.1, "DATASET.VAL_SHOTS", 0), "moves no validation images"),
    ],
)
def test_classes_and_images_that_there_are_not_are_told_in_one_line(
    make_cfg, items, options, message
):
    data = items(*CATS_DOGS)
    with pytest.raises(UserError, match=message) as error:
        FewShotDataset(make_cfg("Toy", *options), data, data, data)
    assert "\n" not in str(error.value)


def test_validation_images_are_tested_on_and_no_longer_validated_on(make_cfg, items):
    train, val, test = items(*CATS_DOGS * 20), items(*CATS_DOGS * 10), items(*CATS_DOGS * 3)

    def made(seed, shots, *options):
        options = ("SEED", seed, "DATASET.NUM_SHOTS", 2, "DATASET.VAL_SHOTS", shots, *options)
        return FewShotDataset(make_cfg("Toy", *options), train, val, test)

    usual, moved = made(1, 0), made(1, 0, "DATASET.VAL_TO_TEST", 0.7)
    assert ids(moved.train_x) == ids(usual.train_x)
    assert moved.test[:6] == test and len(moved.test) == 6 + 14 and len(moved.val) == 6
    assert sorted(ids(moved.val) + ids(moved.test[6:])) == ids(val)
    assert sum(item.label for item in moved.test[6:]) == 7  # the same share of both classes
    # other seeds draw other images to validate on, from those that no seed tests on
    for seed in (1, 2):
        few = made(seed, 2, "DATASET.VAL_TO_TEST", 0.7)
        assert few.test == moved.test and len(few.val) == 4 and {*ids(few.val)} <= {*ids(moved.val)}
    assert not made(1, 0, "DATASET.VAL_TO_TEST", 1.0).val


@pytest.mark.parametrize(
    "option", [("DATASET.SUBSAMPLE_CLASSES", "base"), ("DATASET.CLASSES", ["dog"])]
)
def test_a_split_that_is_another_stays_it(make_cfg, items, option):
    """As ImageNet's val is its test: whoever may not choose on test images can tell."""
    train, test = items(*CATS_DOGS), items(*CATS_DOGS)
    dataset = FewShotDataset(make_cfg("Toy", *option), train, test, test, drawn=True)
    assert dataset.val is dataset.test and len(dataset.test) == 1


def test_subsample_follows_the_labels_of_the_first_split(items):
    train, test = items((0, "a"), (1, "b"), (2, "c")), items((2, "c"), (0, "a"))
    _, new = subsample_classes(train, test, subsample="new")
    assert [(item.label, item.classname) for item in new] == [(0, "c")]


@pytest.mark.parametrize(
    "train, test, message",
    [
        ([], [(0, "cat")], "no images for training"),
        ([(0, "cat")], [], "no images for the test"),
        ([(0, "cat"), (2, "dog")], [(0, "cat")], "labels must run from 0 to 1 .* label 1, 2"),
        ([(1, "cat")], [(1, "cat")], "labels must run from 0 to 0 .* label 0, 1"),
        ([(0, "cat"), (0, "dog")], [(0, "cat")], "two class names, 'cat' and 'dog'"),
        (CATS_DOGS, [(2, "hen")], "training lacks.*hen"),
        (CATS_DOGS, [(1, "cat")], "under another label: cat"),
    ],
)
def test_faulty_labels_are_told_in_one_line(make_cfg, items, train, test, message):
    with pytest.raises(UserError, match=message) as error:
        FewShotDataset(make_cfg("Toy"), items(*train), [], items(*test))
    assert "\n" not in str(error.value)


def test_val_labels_are_checked_too(make_cfg, items):
    data = items(*CATS_DOGS)
    with pytest.raises(UserError, match="hen"):
        FewShotDataset(make_cfg("Toy"), data, items((2, "hen")), data)


@pytest.mark.parametrize("shots", [-1, 2])
def test_test_images_in_training_are_warned_of(make_cfg, tmp_path, capsys, shots):
    def split(*contents):
        paths = [tmp_path / f"{content[:9].decode()}-{len(content)}" for content in contents]
        for path, content in zip(paths, contents):
            path.write_bytes(content)
        return [Entry(str(path), label, 0, f"c{label}") for label, path in enumerate(paths)]

    def drawn(train, test):
        FewShotDataset(make_cfg("Toy", "DATASET.NUM_SHOTS", shots), train, [], test)
        lines = capsys.readouterr().out.splitlines()
        return [line for line in lines if "test images too" in line]

    a, b = split(b"a" * 1000, b"b" * 1000)
    other = split(b"o" * 1000, b"p" * 1000)
    assert not drawn([a, b], other)
    (line,) = drawn([a, b], [a, other[1]])  # the same file
    assert "1 of 2 training images are test images too" in line and a.impath in line
    copy = Path(b.impath + ".copy")
    copy.write_bytes(b"b" * 1000)
    (line,) = drawn([a, b], [other[0], b._replace(impath=str(copy))])  # the same bytes
    assert b.impath in line
    copy.write_bytes(b"c" + b"b" * 999)  # of the same size, the same in the middle
    assert not drawn([a, b], [other[0], b._replace(impath=str(copy))])


def test_unknown_or_empty_half_is_an_error(make_cfg, items):
    data = items((0, "cat"))
    with pytest.raises(UserError, match="all, base or new"):
        FewShotDataset(make_cfg("Toy", "DATASET.SUBSAMPLE_CLASSES", "old"), data, [], data)
    with pytest.raises(UserError, match="SUBSAMPLE_CLASSES new leaves no"):
        FewShotDataset(make_cfg("Toy", "DATASET.SUBSAMPLE_CLASSES", "new"), data, [], data)


def test_long_lists_are_cut():
    assert listed("abc", most=3) == "a, b, c"
    assert listed("abcd", most=3) == "a, b, c and 1 more"
