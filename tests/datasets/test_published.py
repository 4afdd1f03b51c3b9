"""Every published data set, read from a small tree in its own layout by its real loader."""

import json
import random
from collections import Counter

import numpy as np
import pytest
import trees
from scipy.io import savemat

from apd.datasets.caches import cached
from apd.doctor.checks import DATASETS, examine
from apd.errors import UserError
from apd.host import DATASET_REGISTRY, DataManager


@pytest.fixture
def root(tmp_path):
    return tmp_path / "data"


@pytest.fixture
def load(make_cfg):
    """Return a function: data set name and config options to the data set."""
    return lambda name, *options: DATASETS[name](make_cfg(name, *options))


def build(name, root, images=10):
    """A whole data set, its split file included."""
    folder = trees.build(name, root, images)
    if name in trees.SPLIT_FILES:
        DATASETS[name].make_split(folder, seed=1)
    return folder


@pytest.mark.parametrize(
    ("name", "published"),
    [  # classes, and images for training, validation and the test
        ("ImageNet", (1000, 1_281_167, None, 50_000)),
        ("Caltech101", (100, 4_128, 1_649, 2_465)),  # as the others, CoOp (Zhou 2022), appendix A
        ("OxfordPets", (37, 2_944, 736, 3_669)),
        ("StanfordCars", (196, 6_509, 1_635, 8_041)),
        ("OxfordFlowers", (102, 4_093, 1_633, 2_463)),
        ("Food101", (101, 50_500, 20_200, 30_300)),
        ("FGVCAircraft", (100, 3_334, 3_333, 3_333)),
        ("SUN397", (397, 15_880, 3_970, 19_850)),
        ("DescribableTextures", (47, 2_820, 1_128, 1_692)),
        ("EuroSAT", (10, 13_500, 5_400, 8_100)),
        ("UCF101", (101, 7_639, 1_898, 3_783)),
        ("ImageNetV2", (1000, None, None, 10_000)),
        ("ImageNetSketch", (1000, None, None, 50_889)),
        ("ImageNetA", (200, None, None, 7_500)),
        ("ImageNetR", (200, None, None, 30_000)),
    ],
)
def test_the_doctor_compares_with_the_published_counts(name, published):
    assert DATASETS[name].counts == published


def test_every_published_data_set_has_its_counts_pinned():
    (table,) = test_the_doctor_compares_with_the_published_counts.pytestmark
    assert [name for name, _ in table.args[1]] == list(DATASETS)


def rows(split, folder):
    return [[item.impath.removeprefix(f"{folder}/"), item.label, item.classname] for item in split]


def one_line(error):
    return "\n" not in str(error.value)


@pytest.mark.parametrize("name", trees.CLASSES)
def test_classes_are_those_of_coop_and_images_reach_a_batch(make_cfg, root, name):
    build(name, root)
    cfg = make_cfg(name, "DATASET.NUM_SHOTS", 2, "INPUT.TRANSFORMS", ("random_resized_crop",))
    manager = DataManager(cfg)
    assert manager.dataset.classnames == trees.CLASSES[name]
    assert {item.classname for item in manager.dataset.test} == set(trees.CLASSES[name])
    batch = next(iter(manager.test_loader))
    assert batch["img"].shape[1:] == (3, 32, 32) and batch["img"].std() > 0
    expected = Counter(item.label for item in manager.dataset.train_x)
    assert set(expected.values()) == ({10} if name in trees.SHIFTS else {2})


@pytest.mark.parametrize("name", ["EuroSAT", "FGVCAircraft", "ImageNet"])
def test_all_validation_images_beside_a_kept_draw(load, root, name):
    build(name, root)
    shots = ("DATASET.NUM_SHOTS", 2)
    usual, again, whole = (
        load(name, *shots, *more, "DATASET.VAL_SHOTS", n)
        for more, n in (((), -1), ((), 0), (("DATASET.NUM_SHOTS", -1), -1))
    )
    assert [item.impath for item in again.train_x] == [item.impath for item in usual.train_x]
    assert [item.impath for item in again.val] == [item.impath for item in whole.val]


def test_all_are_registered_under_coops_names():
    import apd.datasets  # noqa: F401

    assert set(trees.CLASSES) == set(DATASETS) <= set(DATASET_REGISTRY.registered_names())


@pytest.mark.parametrize("name", trees.SPLIT_FILES)
def test_split_file_is_taken_as_it_is(load, root, name):
    """Whatever its names, order and numbers; the raw annotations are not looked at."""
    folder = trees.build(name, root)
    images = folder / DATASETS[name].image_dir
    files = [str(f.relative_to(images)) for f in images.rglob("*.jpg")][:6]
    split = {
        "train": [[files[0], 1, "z z"], [files[1], 0, "A_b"]],
        "val": [[files[2], 0, "A_b"]],
        "test": [[files[3], 1, "z z"], [files[4], 1, "z z"], [files[5], 0, "A_b"]],
    }
    DATASETS[name].split_path(folder).write_text(json.dumps(split))
    dataset = load(name)
    assert rows(dataset.train_x, images) == split["train"]
    assert rows(dataset.val, images) == split["val"]
    assert rows(dataset.test, images) == split["test"]
    assert dataset.classnames == ["A_b", "z z"]


@pytest.mark.parametrize("name", trees.FEWSHOT)
def test_draw_is_dassls_after_coops_seeding(load, root, name):
    build(name, root, images=40)
    whole = load(name)
    for shots, seed in ((1, 1), (8, 2)):
        dataset = load(name, "DATASET.NUM_SHOTS", shots, "SEED", seed)
        rng, drawn = random.Random(seed), []
        for split, k in ((whole.train_x, shots), (whole.val, min(shots, 4))):
            groups = {}
            for item in split:
                groups.setdefault(item.label, []).append(item.impath)
            drawn.append([path for group in groups.values() for path in rng.sample(group, k)])
        assert [item.impath for item in dataset.train_x] == drawn[0]
        if name == "ImageNet":  # no validation of its own: the test images, all of them
            drawn[1] = [item.impath for item in whole.test]
        assert [item.impath for item in dataset.val] == drawn[1]
        assert len(dataset.test) == len(whole.test)


@pytest.mark.parametrize("name", trees.CLASSES)
def test_tasks_divide_every_data_set_and_its_draw(load, root, name):
    build(name, root)
    tasks = [load(name, "DATASET.NUM_SHOTS", 2, "DATASET.CLASSES", [f"{k}/2/0"]) for k in (1, 2)]
    whole = load(name, "DATASET.NUM_SHOTS", 2)
    assert sorted(sum((task.classnames for task in tasks), [])) == sorted(whole.classnames)
    for split in ("train_x", "val", "test"):
        parts = [item.impath for task in tasks for item in getattr(task, split)]
        assert sorted(parts) == sorted(item.impath for item in getattr(whole, split))


@pytest.mark.parametrize("name", ["OxfordPets", "ImageNet", "ImageNetV2"])
def test_validation_images_are_tested_on_where_there_are_some(load, root, name):
    build(name, root)
    options = ("DATASET.NUM_SHOTS", 2, "DATASET.VAL_SHOTS", 0, "DATASET.VAL_TO_TEST", 0.5)
    if name != "OxfordPets":
        with pytest.raises(UserError, match="VAL_TO_TEST 0.5 moves no validation images"):
            load(name, *options)
        return
    whole, some = load(name, *options[:4]), load(name, *options)
    assert len(some.test) + len(some.val) == len(whole.test) + len(whole.val)
    assert [item.impath for item in some.train_x] == [item.impath for item in whole.train_x]


@pytest.mark.parametrize("name", ["OxfordPets", "FGVCAircraft", "ImageNet"])
def test_base_and_new_share_the_draw(load, root, name):
    build(name, root)
    half = [
        load(name, "DATASET.NUM_SHOTS", 2, "DATASET.SUBSAMPLE_CLASSES", part)
        for part in ("base", "new")
    ]
    assert half[0].classnames == trees.CLASSES[name][:2]
    assert half[1].classnames == trees.CLASSES[name][2:]
    assert {item.label for item in half[1].test} == {0}
    both = load(name, "DATASET.NUM_SHOTS", 2)
    assert sorted(item.impath for item in both.train_x) == sorted(
        item.impath for part in half for item in part.train_x
    )


@pytest.mark.parametrize("name", trees.SHIFTS)
def test_shifts_are_all_test_images(load, root, name):
    trees.build(name, root, images=3)
    dataset = load(name, "DATASET.NUM_SHOTS", 1)
    assert len(dataset.train_x) == len(dataset.test) == 3 * dataset.num_classes
    assert not dataset.val
    with pytest.raises(UserError, match=f"{name} is a test set with all its classes"):
        load(name, "DATASET.SUBSAMPLE_CLASSES", "base")


def test_imagenetv2_folders_are_labels_not_sorted_as_text(load, root):
    folder = root / "imagenetv2"
    trees.text(folder / "classnames.txt", *(f"n{i:08d} class {i}" for i in range(12)))
    for i in range(12):
        trees.image(folder / "imagenetv2-matched-frequency-format-val" / str(i) / "a.jpeg")
    dataset = load("ImageNetV2")
    assert [(item.label, item.classname) for item in dataset.test] == [
        (i, f"class {i}") for i in range(12)
    ]


@pytest.mark.parametrize("name", trees.CLASSES)
def test_what_is_missing_is_named_with_its_place_and_origin(load, root, name):
    root.mkdir()
    folder, layout = root / DATASETS[name].dataset_dir, DATASETS[name].layout
    path, origin = next(iter(layout.items()))
    with pytest.raises(UserError) as error:
        load(name)
    assert one_line(error)
    assert f"there is no {folder / path}: get it from {origin}" in str(error.value)
    assert "apd.doctor" in str(error.value)


@pytest.mark.parametrize("name", trees.SPLIT_FILES)
def test_missing_split_file_is_told_and_none_is_made(load, root, name):
    folder = trees.build(name, root)
    with pytest.raises(UserError) as error:
        load(name)
    message = str(error.value)
    assert one_line(error) and str(folder / f"split_zhou_{name}.json") in message
    assert f"drive.google.com/file/d/{DATASETS[name].split_id}" in message
    assert f"--root {root} --dataset {name} --make-split" in message
    assert "not comparable" in message
    assert not list(folder.glob("*.json")) or name == "OxfordFlowers"
    assert not (folder / f"split_zhou_{name}.json").exists()


@pytest.mark.parametrize("name", trees.SPLIT_FILES)
def test_split_is_seeded_says_that_it_was_made_and_replaces_none(load, root, name, capsys):
    folder = trees.build(name, root)
    path = DATASETS[name].make_split(folder, seed=1)
    first = json.loads(path.read_text())
    with pytest.raises(UserError, match="is there already"):
        DATASETS[name].make_split(folder, seed=2)
    path.unlink()
    DATASETS[name].make_split(folder, seed=2)
    assert json.loads(path.read_text())["train"] != first["train"]
    path.unlink()
    random.seed(3)  # neither heeded
    DATASETS[name].make_split(folder, seed=1)
    assert json.loads(path.read_text()) == first
    assert load(name).classnames == trees.CLASSES[name]
    assert "the split is made by" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["EuroSAT", "OxfordFlowers"])
def test_data_without_a_test_set_is_cut_50_20_30(root, name):
    folder = trees.build(name, root, images=10)
    split = json.loads(DATASETS[name].make_split(folder, seed=1).read_text())
    classes = len(trees.CLASSES[name])
    for part, count in (("train", 5), ("val", 2), ("test", 3)):
        labels = Counter(label for _, label, _ in split[part])
        assert labels == dict.fromkeys(range(classes), count)
    paths = [path for part in ("train", "val", "test") for path, _, _ in split[part]]
    assert len(set(paths)) == len(paths) == 10 * classes


@pytest.mark.parametrize("name", ["OxfordPets", "StanfordCars", "SUN397", "UCF101"])
def test_data_with_a_test_set_keeps_it(root, name):
    folder = trees.build(name, root, images=10)
    split = json.loads(DATASETS[name].make_split(folder, seed=1).read_text())
    assert split["test"] == [list(row) for row in DATASETS[name].raw(folder)[1]]
    for part, count in (("train", 8), ("val", 2)):
        labels = Counter(label for _, label, _ in split[part])
        assert labels == dict.fromkeys(range(3), count)


def split_of(**changes):
    rows = [["a.jpg", 0, "cat"], ["b.jpg", 1, "dog"]]
    return json.dumps({**dict.fromkeys(("train", "val", "test"), rows), **changes})


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "cannot read .*split_zhou_DescribableTextures.json .*download it again"),
        ("[]", "must be JSON with train, val and test"),
        ('{"train": [], "val": []}', "KeyError: test.*must be JSON"),
        (split_of(train=[["a.jpg", 0]]), "each a list of .image, label, class name."),
        (split_of(train=[["a.jpg", "x", "cat"]]), "is no .image, whole number, class name."),
        (split_of(train=[["a.jpg", True, "cat"]]), "is no .image, whole number, class name."),
        (split_of(train=[["a.jpg", 1.5, "cat"]]), "is no .image, whole number, class name."),
        (split_of(train=[["a.jpg", float("inf"), "cat"]]), "Infinity is no finite number"),
        (split_of(train=[["a.jpg", 0, "cat"]]).replace("0", "1e999"), "1e999 is no finite number"),
        ("[" * 100_000, "nested more than 50 levels deep"),
        (split_of(val=[["../../../x.jpg", 0, "cat"]]), "^../../../x.jpg leads out of .*images"),
        (split_of(test=[["/etc/x.jpg", 0, "cat"]]), "^/etc/x.jpg leads out of .*images"),
        (
            split_of(train=[["a.jpg", 0, "cat"], ["b.jpg", -1, "dog"]]),
            "labels must run from 0 to 1",
        ),
        (split_of(train=[["a.jpg", 0, "cat"], ["b.jpg", 7, "dog"]]), "look at label 1, 7"),
        (split_of(train=[["a.jpg", 0, "cat"]]), "training lacks.*dog"),  # an empty class
        (split_of(train=[["a.jpg", 0, "cat"], ["b.jpg", 0, "dog"]]), "two class names, 'cat' and"),
        (split_of(test=[["z.jpg", 0, "cat"]]), "1 of 1 images are missing: .*images/z.jpg"),
    ],
)
def test_faulty_split_files_are_told_in_one_line(load, root, content, message):
    for file in ("a.jpg", "b.jpg"):
        trees.image(root / "dtd" / "images" / file)
    (root / "dtd" / "split_zhou_DescribableTextures.json").write_text(content)
    with pytest.raises(UserError, match=message) as error:
        load("DescribableTextures")
    assert one_line(error)


@pytest.mark.parametrize(
    "row, message",
    [
        (["../../secret.jpg", 0, "banded"], "secret.jpg leads out of"),
        (["/etc/x.jpg", 0, "banded"], "/etc/x.jpg leads out of"),
        (["banded/x.jpg", 0.0, "banded"], "is no .image, whole number, class name."),
        (["banded/x.jpg"], "not enough values"),
        (7, "is no draw"),
    ],
)
def test_a_few_shot_file_that_somebody_made_reads_no_other_files(load, root, row, message):
    """With the right key and hash, which are no secret."""
    folder = build("DescribableTextures", root)
    load("DescribableTextures", "DATASET.NUM_SHOTS", 2)
    path = folder / "split_fewshot" / "shot_2-seed_1.json"
    key, value = json.loads(path.read_text())["key"], {"train": [row], "val": []}
    path.unlink()
    cached(path, key, lambda: value)
    with pytest.raises(UserError, match=message) as error:
        load("DescribableTextures", "DATASET.NUM_SHOTS", 2)
    assert one_line(error) and str(path) in str(error.value)
    assert "remove it" in str(error.value)


def test_imagenets_kept_list_reads_no_other_files(load, root):
    folder = build("ImageNet", root)
    load("ImageNet")
    path = folder / "preprocessed.json"
    kept = json.loads(path.read_text())
    wnid = next(iter(kept["value"]["train"]))
    kept["value"]["train"][wnid][0] = "../../../secret.jpg"
    path.unlink()
    cached(path, kept["key"], lambda: kept["value"])
    with pytest.raises(UserError, match="secret.jpg leads out of") as error:
        load("ImageNet")
    assert one_line(error)


def test_classes_of_one_name_are_warned_of(load, root, capsys):
    """As ImageNet's published names have such pairs, and as two prompts alike can both run."""
    folder = trees.build("ImageNet", root)
    trees.text(folder / "classnames.txt", *(f"{wnid} missile" for wnid in trees.WNIDS))
    load("ImageNet")
    assert "share a prompt" not in capsys.readouterr().out  # a trainer says it, and the doctor
    (line,) = examine(DATASETS["ImageNet"], root).advice[:1]
    assert "share a prompt: 'missile' = 'missile' = 'missile'" in line


def set_line(path, line):
    def damage(folder):
        lines = (folder / path).read_text().splitlines()
        trees.text(folder / path, line, *lines[1:])

    return damage


def remove(path):
    return lambda folder: (folder / path).unlink()


def write(path, content):
    return lambda folder: (folder / path).write_bytes(content)


@pytest.mark.parametrize(
    "name, damage, message",
    [
        # missing annotation files
        (
            "OxfordPets",
            remove("annotations/test.txt"),
            "no .*annotations/test.txt: get it from http",
        ),
        ("StanfordCars", remove("devkit/cars_meta.mat"), "no .*devkit/cars_meta.mat: get it"),
        ("OxfordFlowers", remove("cat_to_name.json"), "no .*cat_to_name.json: get it"),
        ("SUN397", remove("ClassName.txt"), "no .*ClassName.txt: get it"),
        ("UCF101", remove("ucfTrainTestlist/classInd.txt"), "no .*classInd.txt: get it"),
        # damaged ones
        (
            "OxfordPets",
            set_line("annotations/test.txt", "cat"),
            "test.txt, line 1: cannot read 'cat'",
        ),
        ("StanfordCars", write("devkit/cars_meta.mat", b"MATLAB"), "'class_names' in .*meta.mat"),
        (
            "OxfordFlowers",
            write("imagelabels.mat", b""),
            "cannot read 'labels' in .*imagelabels.mat",
        ),
        ("OxfordFlowers", write("cat_to_name.json", b"{"), "cannot read .*cat_to_name.json"),
        ("SUN397", set_line("Testing_01.txt", "/b/bar/1.jpg"), "Testing_01.txt, line 1: .*b/bar"),
        ("UCF101", set_line("ucfTrainTestlist/trainlist01.txt", "Fly/v.avi 1"), "line 1: .*Fly"),
        ("UCF101", set_line("ucfTrainTestlist/classInd.txt", "one YoYo"), "classInd.txt, line 1"),
        # labels out of range
        ("OxfordPets", set_line("annotations/trainval.txt", "Abyssinian_0 9 1 1"), "label 3, 8"),
        (
            "StanfordCars",
            lambda folder: trees.save_car_labels(
                folder / "devkit/cars_train_annos.mat", [1, 2, 3, 4]
            ),
            "cars_meta.mat does not name .4.",
        ),
        (
            "OxfordFlowers",
            lambda folder: savemat(
                folder / "imagelabels.mat", {"labels": np.array([[1, 2, 3, 9]])}
            ),
            "no name for label 9",
        ),
        (
            "UCF101",
            set_line("ucfTrainTestlist/classInd.txt", "9 ApplyEyeMakeup"),
            "labels must run",
        ),
        # a class of one name twice, and one without images
        ("SUN397", set_line("ClassName.txt", "/c/church/indoor"), "class .c/church/indoor. twice"),
        ("EuroSAT", lambda folder: (folder / "2750/Lake").mkdir(), "no images in .*2750/Lake"),
        (
            "Food101",
            lambda folder: trees.image(folder / "images/bread/1.jpg"),
            "'bread' has 1 images",
        ),
    ],
)
def test_faulty_annotations_are_told_in_one_line_and_no_split_is_made(root, name, damage, message):
    folder = trees.build(name, root)
    damage(folder)
    with pytest.raises(UserError, match=message) as error:
        DATASETS[name].make_split(folder, seed=1)
    assert one_line(error)
    assert not DATASETS[name].split_path(folder).exists()


@pytest.mark.parametrize(
    "damage, message",
    [
        (remove("variants.txt"), "no .*variants.txt: get it from"),
        (set_line("variants.txt", "DHC-8-100"), "names the class 'DHC-8-100' twice"),
        (set_line("images_variant_val.txt", "1 777"), "val.txt, line 1: cannot read '1 777' .777."),
        (set_line("images_variant_val.txt", "1 707-320"), "1 of 30 images are missing: .*/1.jpg"),
        (
            set_line("variants.txt", "707-320\nBoeing"),
            "training lacks|labels must run",
        ),  # empty class
    ],
)
def test_faulty_aircraft_is_told_in_one_line(load, root, damage, message):
    damage(trees.build("FGVCAircraft", root))
    with pytest.raises(UserError, match=message) as error:
        load("FGVCAircraft")
    assert one_line(error)


@pytest.mark.parametrize(
    "damage, message",
    [
        (remove("classnames.txt"), "no .*classnames.txt: get it from"),
        (set_line("classnames.txt", "n01440764"), "classnames.txt, line 1: .*no class name"),
        (set_line("classnames.txt", "n01443537 tench"), "line 2: .*n01443537 has a name already"),
        (set_line("classnames.txt", "n0 fish"), "has no name for the class folders n01440764"),
        (lambda f: (f / "images/train/n0").mkdir(), "train/n0 is empty"),
        (lambda f: trees.image(f / "images/train/n0/1.JPEG"), "same class folders; look at n0"),
    ],
)
def test_faulty_imagenet_is_told_in_one_line(load, root, damage, message):
    damage(trees.build("ImageNet", root))
    with pytest.raises(UserError, match=message) as error:
        load("ImageNet")
    assert one_line(error)


def test_validation_images_that_are_not_sorted_into_folders_are_told(load, root):
    folder = trees.build("ImageNet", root)
    for path in list((folder / "images" / "val").rglob("*.JPEG")):
        path.rename(folder / "images" / "val" / path.name)
        if not list(path.parent.iterdir()):
            path.parent.rmdir()
    with pytest.raises(UserError, match="no class folders in .*images/val"):
        load("ImageNet")
