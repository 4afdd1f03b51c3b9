"""Draws and lists that are kept: ours in JSON, CoOp's in pickles that may not run code."""

import json
import os
import pickle
import sys
import types

import pytest
import trees

from apd.datasets import imagenet
from apd.datasets.caches import cached, digest, read_pickle
from apd.doctor.checks import DATASETS
from apd.errors import UserError
from apd.host import Datum


@pytest.fixture
def load(make_cfg):
    def load(name="OxfordPets", shots=4, seed=1):
        return DATASETS[name](make_cfg(name, "DATASET.NUM_SHOTS", shots, "SEED", seed))

    return load


@pytest.fixture
def pets(tmp_path):
    folder = trees.build("OxfordPets", tmp_path / "data")
    DATASETS["OxfordPets"].make_split(folder, seed=1)
    return folder


@pytest.fixture
def dassl(monkeypatch):
    """A class that pickles as Dassl's Datum, whichever the host."""
    path = "dassl.data.datasets.base_dataset"
    for name in ("dassl", "dassl.data", "dassl.data.datasets"):
        if name not in sys.modules:
            monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    module = sys.modules.get(path) or types.ModuleType(path)
    monkeypatch.setitem(sys.modules, path, module)
    if not hasattr(module, "Datum"):
        module.Datum = type("Datum", (), {"__module__": path})

    def datum(impath, label, classname):
        item = object.__new__(module.Datum)
        item.__dict__ = {
            "_impath": str(impath),
            "_label": label,
            "_domain": 0,
            "_classname": classname,
        }
        return item

    return datum


def images(split):
    return [(item.impath, item.label, item.classname) for item in split]


def dump(path, content):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=pickle.HIGHEST_PROTOCOL))
    return path


def test_a_draw_is_kept_as_json_and_used_again(load, pets, monkeypatch):
    first = load()
    kept = json.loads((pets / "split_fewshot" / "shot_4-seed_1.json").read_text())["value"]
    assert kept["train"][0][1:] == [0, "abyssinian"] and len(kept["train"]) == 12
    monkeypatch.setattr(DATASETS["OxfordPets"], "draw", lambda *_: pytest.fail("drew again"))
    second = load()
    assert images(second.train_x) == images(first.train_x)
    assert images(second.val) == images(first.val)


def test_a_draw_goes_when_the_split_does(load, pets):
    """So that a draw from a split that was made here does not outlive it."""
    load()
    path = DATASETS["OxfordPets"].split_path(pets)
    path.unlink()
    DATASETS["OxfordPets"].make_split(pets, seed=2)
    split = json.loads(path.read_text())
    test = {str(pets / "images" / row[0]) for row in split["test"]}
    train = {str(pets / "images" / row[0]) for row in split["train"]}
    drawn = {item.impath for item in load().train_x}
    assert drawn <= train and not drawn & test
    kept = (pets / "split_fewshot" / "shot_4-seed_1.json").read_text()
    assert all(path.rpartition("/")[2] in kept for path in drawn)


@pytest.mark.parametrize("split", ["train", "val"])
def test_aircrafts_draw_goes_when_a_list_does(load, tmp_path, split):
    folder = trees.build("FGVCAircraft", tmp_path / "data")
    load("FGVCAircraft")
    path = folder / f"images_variant_{split}.txt"
    left = path.read_text().splitlines()[15:]
    trees.text(path, *left)
    dataset = load("FGVCAircraft")
    drawn = dataset.train_x if split == "train" else dataset.val
    images = {f"{line.split(' ')[0]}.jpg" for line in left}
    assert {item.impath.rpartition("/")[2] for item in drawn} <= images


def test_without_a_seed_nothing_is_kept(load, pets):
    load(seed=-1)
    assert not (pets / "split_fewshot").exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"key": "other"}', "null"])
def test_a_damaged_cache_is_made_again(tmp_path, content):
    path = tmp_path / "cache.json"
    path.write_text(content)
    assert cached(path, "key", lambda: {"made": 1}) == {"made": 1}
    assert cached(path, "key", lambda: pytest.fail("made again")) == {"made": 1}
    assert cached(path, "key 2", lambda: {"made": 2}) == {"made": 2}


def test_a_root_that_cannot_be_written_still_works(load, pets, capsys):
    expected = images(load().train_x)
    (pets / "split_fewshot" / "shot_4-seed_1.json").unlink()
    (pets / "split_fewshot").rmdir()
    (pets / "split_fewshot").write_text("in the way, for whoever may write everywhere")
    assert images(load().train_x) == expected
    assert "is not kept" in capsys.readouterr().out


def test_coops_draw_goes_first(load, pets, dassl):
    drawn = pickled(pets, dassl, load(seed=2), "shot_4-seed_1.pkl")
    dataset = load()
    assert images(dataset.train_x) == images(drawn.train_x) != images(load(seed=3).train_x)
    assert images(dataset.val) == images(drawn.val) and isinstance(dataset.train_x[0], Datum)
    assert not (pets / "split_fewshot" / "shot_4-seed_1.json").exists()


def test_coops_draw_of_windows_is_read(load, pets, dassl):
    """Its paths have a drive, and backslashes before the file of the split, slashes in it."""
    drawn = load(seed=2)
    pickled(
        pets,
        dassl,
        drawn,
        "shot_4-seed_1.pkl",
        path=lambda item: "C:\\Users\\me\\oxford_pets\\images\\" + item.impath.rpartition("/")[2],
    )
    assert images(load().train_x) == images(drawn.train_x)


@pytest.mark.parametrize(
    "shots, told",
    [
        (2, "class 'abyssinian' has 2 train images in it, where a draw of that name gives 4"),
        (8, "class 'abyssinian' has 8 train images in it, where a draw of that name gives 4"),
    ],
)
def test_coops_draw_must_be_as_large_as_its_name_says(load, pets, dassl, shots, told):
    path = pickled(pets, dassl, load(shots=shots, seed=2), "shot_4-seed_1.pkl") and (
        pets / "split_fewshot" / "shot_4-seed_1.pkl"
    )
    with pytest.raises(UserError, match=f"{path}: {told}"):
        load()


def test_coops_draw_has_no_image_twice_and_lacks_no_class(load, pets, dassl):
    drawn = load(seed=2)
    for train in ([*drawn.train_x, drawn.train_x[0]], drawn.train_x[4:]):
        pickled(pets, dassl, drawn, "shot_4-seed_1.pkl", train=train)
        with pytest.raises(UserError, match="class 'abyssinian' has . train images in it"):
            load()


def test_coops_draw_of_a_small_class_has_all_of_it(load, pets, dassl):
    """As a draw gives it."""
    drawn = load(shots=100, seed=2)
    assert len(drawn.train_x) == 24
    pickled(pets, dassl, drawn, "shot_100-seed_1.pkl")
    assert len(load(shots=100).train_x) == 24


def test_a_draw_under_another_name_is_drawn_again(load, pets):
    load(shots=2)
    folder = pets / "split_fewshot"
    (folder / "shot_2-seed_1.json").rename(folder / "shot_4-seed_1.json")
    assert len(load(shots=4).train_x) == 12


@pytest.mark.parametrize(
    "damage",
    [
        lambda kept: kept.update(value={"train": kept["value"]["train"][:4], "val": []}),
        lambda kept: kept["value"]["train"][0].reverse(),
        lambda kept: kept.update(value={}),
        lambda kept: kept.update(value=None),
    ],
)
def test_a_damaged_draw_is_told_and_drawn_again(load, pets, capsys, damage):
    expected = images(load().train_x)
    path = pets / "split_fewshot" / "shot_4-seed_1.json"
    kept = json.loads(path.read_text())
    damage(kept)
    path.write_text(json.dumps(kept))
    capsys.readouterr()
    assert images(load().train_x) == expected
    assert f"note: {path} is damaged: it is made again" in capsys.readouterr().out
    assert images(load().train_x) == expected and "is damaged" not in capsys.readouterr().out


def pickled(folder, datum, dataset, name, path=lambda item: item.impath, **splits):
    """Write a draw as CoOp does, and return it."""
    splits = {"train": dataset.train_x, "val": dataset.val, **splits}
    content = {
        split: [datum(path(item), item.label, item.classname) for item in items]
        for split, items in splits.items()
    }
    dump(folder / "split_fewshot" / name, content)
    return dataset


@pytest.mark.parametrize("elsewhere", ["/elsewhere", "/oxford_pets/images/backup"])
def test_coops_paths_of_another_machine_are_read_below_this_root(load, pets, dassl, elsewhere):
    here = load()
    content = {
        split: [
            dassl(item.impath.replace(str(pets.parent), elsewhere), item.label, item.classname)
            for item in items
        ]
        for split, items in (("train", here.train_x), ("val", here.val))
    }
    dump(pets / "split_fewshot" / "shot_4-seed_1.pkl", content)
    assert images(load().train_x) == images(here.train_x)
    assert images(load().val) == images(here.val)


@pytest.mark.parametrize(
    "change",
    [
        {"impath": "test image"},
        {"impath": "/elsewhere/cat.jpg"},
        {"label": 1},
        {"classname": "cat"},
    ],
)
def test_coops_draw_from_another_split_is_refused(load, pets, dassl, change):
    """CoOp would train on images of the test set."""
    here = load()
    if change.get("impath") == "test image":
        change = {"impath": here.test[0].impath}
    items = [{"impath": i.impath, "label": i.label, "classname": i.classname} for i in here.train_x]
    items[0] |= change
    content = {"train": [dassl(**item) for item in items], "val": []}
    path = dump(pets / "split_fewshot" / "shot_4-seed_1.pkl", content)
    message = "1 of its 12 train images .*another split; remove"
    with pytest.raises(UserError, match=message) as error:
        load()
    assert str(path) in str(error.value) and "\n" not in str(error.value)


class Malicious:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "content, named",
    [
        (Malicious(os.system, "touch {}"), "posix.system"),
        ({"train": [Malicious(eval, "open('{}', 'w')")]}, "eval"),
        ({"train": [Malicious(getattr, dict, "get")]}, "getattr"),
        ({"train": [types.SimpleNamespace(_impath="x")]}, "SimpleNamespace"),
    ],
)
@pytest.mark.parametrize("where", ["split_fewshot/shot_4-seed_1.pkl", "preprocessed.pkl"])
def test_a_malicious_pickle_is_refused_and_named(load, pets, tmp_path, where, content, named):
    sign = tmp_path / "sign"
    raw = pickle.dumps(content, protocol=0).replace(b"{}", str(sign).encode())
    folder, name = pets, "OxfordPets"
    if where == "preprocessed.pkl":
        folder, name = trees.build("ImageNet", tmp_path / "data"), "ImageNet"
    path = folder / where
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(raw)
    with pytest.raises(UserError, match="is refused: it names .*remove it") as error:
        load(name)
    assert str(path) in str(error.value) and named in str(error.value)
    assert "\n" not in str(error.value) and not sign.exists()


def test_no_attribute_of_a_datum_is_a_way_in(tmp_path, dassl):
    """What a pickle sets on the class or on an instance runs nothing."""
    sign = tmp_path / "sign"
    item = dassl("x.jpg", 0, "cat")
    item.__dict__["_impath"] = Malicious(os.mkdir, str(sign))
    with pytest.raises(UserError, match="names posix.mkdir"):
        read_pickle(dump(tmp_path / "attribute.pkl", {"train": [item]}))
    assert not sign.exists()


def test_every_protocol_and_both_names_of_datum_are_read(tmp_path, dassl):
    ours = object.__new__(Datum)
    ours.__dict__ = dict(dassl("y.jpg", 1, "dog").__dict__)
    for item in (dassl("y.jpg", 1, "dog"), ours):
        for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):  # CoOp writes the highest
            path = tmp_path / "cache.pkl"
            path.write_bytes(pickle.dumps({"train": [item]}, protocol=protocol))
            assert read_pickle(path) == {"train": [("y.jpg", 1, 0, "dog")]}


def test_dassls_datum_is_replaced_not_imported(tmp_path, dassl, monkeypatch):
    path = dump(tmp_path / "cache.pkl", {"train": [dassl("y.jpg", 1, "dog")]})
    monkeypatch.setitem(sys.modules, "dassl.data.datasets.base_dataset", None)  # not importable
    assert read_pickle(path) == {"train": [("y.jpg", 1, 0, "dog")]}


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"no pickle",
        pickle.dumps([1]),
        pickle.dumps({"train": [1]}),
        pickle.dumps({"train": 1}),
    ],
)
def test_a_damaged_pickle_is_told_in_one_line(tmp_path, raw):
    path = tmp_path / "cache.pkl"
    path.write_bytes(raw)
    with pytest.raises(UserError, match="cache.pkl cannot be read as one of CoOp's") as error:
        read_pickle(path)
    assert "\n" not in str(error.value)


def test_digest_tells_parts_apart():
    assert digest("ab", "c") != digest("a", "bc") != digest("abc")
    assert digest("ab", "c") == digest(b"ab", b"c")


@pytest.fixture
def net(tmp_path):
    return trees.build("ImageNet", tmp_path / "data", images=30)


def test_imagenet_is_listed_once(load, net, monkeypatch):
    first = load("ImageNet")
    monkeypatch.setattr(imagenet, "files", lambda _: pytest.fail("listed again"))
    again = load("ImageNet")
    assert images(again.train_x) == images(first.train_x)
    assert images(again.test) == images(first.test)


def test_imagenet_is_listed_again_when_a_folder_changes(load, net):
    load("ImageNet", shots=-1)
    new = net / "images" / "train" / trees.WNIDS[1] / "new.JPEG"
    trees.image(new)
    os.utime(new.parent, ns=(0, 1))  # a clock tick may not have passed
    assert str(new) in {item.impath for item in load("ImageNet", shots=-1).train_x}


def test_imagenets_draw_follows_the_file_systems_order_and_the_class_names(load, net, monkeypatch):
    listdir = os.listdir
    draws = []
    for order in (sorted, lambda names: sorted(names, reverse=True)):
        monkeypatch.setattr(os, "listdir", lambda path, order=order: order(listdir(path)))
        os.utime(net / "images" / "train" / trees.WNIDS[0], ns=(0, len(draws)))
        draws.append(images(load("ImageNet").train_x))
    assert draws[0] != draws[1]
    trees.text(net / "classnames.txt", *(f"{wnid} fish {wnid}" for wnid in trees.WNIDS))
    assert load("ImageNet").train_x[0].classname == "fish n01440764"


def test_coops_list_of_imagenet_is_used_below_this_root(load, net, dassl, monkeypatch):
    drawn = load("ImageNet")
    whole = load("ImageNet", shots=-1)
    content = {
        split: [
            dassl(i.impath.replace(str(net.parent), "/elsewhere"), i.label, i.classname)
            for i in items
        ]
        for split, items in (("train", whole.train_x[::-1]), ("test", whole.test))
    }
    content["train"].sort(key=lambda item: item._label)
    dump(net / "preprocessed.pkl", content)
    monkeypatch.setattr(os, "listdir", lambda _: pytest.fail("listed"))
    theirs = load("ImageNet", shots=-1)
    assert [item.impath for item in theirs.train_x] == [
        item._impath.replace("/elsewhere", str(net.parent)) for item in content["train"]
    ]
    assert images(load("ImageNet").train_x) != images(drawn.train_x)


def test_a_list_of_other_images_is_refused(load, net, dassl):
    items = [dassl("/elsewhere/imagenet/images/train/n01440764/1.JPEG", 5, "tench")]
    dump(net / "preprocessed.pkl", {"train": items, "test": []})
    with pytest.raises(UserError, match="preprocessed.pkl: .*label 5 .*remove this file"):
        load("ImageNet")
