import re

import pytest
import trees

from apd.datasets.layout import Counts
from apd.doctor import checks as doctor
from apd.doctor.checks import DATASETS
from apd.doctor.command import main


@pytest.fixture
def root(tmp_path):
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.fixture
def ask(root, capsys):
    """Return a function: options to exit code, what is printed, and the table's rows by name."""

    def ask(*options):
        code = main(["--root", str(root), *options])
        out, err = capsys.readouterr()
        rows = {}
        table = out.partition("\n-")[2].partition("\n\n")[0]
        for line in table.splitlines()[1:]:
            cells = line.split("  ")
            rows[cells[0]] = [cell.strip() for cell in cells[1:] if cell.strip()]
        return code, out, err, rows

    return ask


def test_an_empty_root_says_what_to_fetch_for_every_data_set(root, ask):
    code, out, _, rows = ask()
    assert code == 1 and list(rows) == list(DATASETS)
    for name, dataset in DATASETS.items():
        assert rows[name][:2] == ["missing", str(root / dataset.dataset_dir)]
        for path, origin in dataset.layout.items():
            line = next(li for li in out.splitlines() if f"{dataset.dataset_dir}/{path}" in li)
            assert line.startswith(f"{name}: ") and line.endswith(f"<- {origin}")
        if name in trees.SPLIT_FILES:
            assert f"{dataset.dataset_dir}/split_zhou_{name}.json <- https://drive" in out
    assert "DATASETS.md" in out and "--make-split" in out


@pytest.mark.parametrize("name", trees.CLASSES)
def test_a_whole_data_set_is_usable(root, ask, name):
    trees.build(name, root)
    options = ["--make-split"] if name in trees.SPLIT_FILES else []
    code, out, _, rows = ask("--dataset", name, "--deep", *options)
    assert code == 0 and list(rows) == [name]
    state, folder, split, classes, *_, unreadable = rows[name]
    assert (state, unreadable) == ("counts differ", "0")
    published = DATASETS[name].counts.classes
    assert classes == f"{len(trees.CLASSES[name])} of {published:,}"
    assert split == ("made here" if options else "–")
    assert ("not comparable with published numbers" in out) == bool(options)


def test_published_counts_stand_beside_those_found(root, ask, monkeypatch):
    trees.build("FGVCAircraft", root)
    _, _, _, rows = ask("--dataset", "FGVCAircraft")
    assert rows["FGVCAircraft"][3:] == ["3 of 100", "30 of 3,334", "30 of 3,333", "30 of 3,333"]
    monkeypatch.setattr(DATASETS["FGVCAircraft"], "counts", Counts(3, 30, 30, 30))
    code, _, _, rows = ask("--dataset", "FGVCAircraft")
    assert code == 0 and rows["FGVCAircraft"][0] == "ok"


def test_an_imagenet_shift_has_test_images_only(root, ask, monkeypatch):
    trees.build("ImageNetA", root)
    _, _, _, rows = ask("--dataset", "ImageNetA")
    assert rows["ImageNetA"][3:] == ["2 of 200", "–", "–", "20 of 7,500"]
    monkeypatch.setattr(DATASETS["ImageNetA"], "counts", Counts(2, None, None, 20))
    assert ask("--dataset", "ImageNetA")[3]["ImageNetA"][0] == "ok"


def test_one_missing_data_set_of_two_fails(root, ask):
    trees.build("FGVCAircraft", root)
    code, out, _, rows = ask("--dataset", "FGVCAircraft", "EuroSAT")
    assert code == 1 and rows["EuroSAT"][0] == "missing"
    assert "FGVCAircraft: usable" in out


def test_a_missing_split_file_is_all_that_is_asked_for(root, ask):
    trees.build("EuroSAT", root)
    code, out, _, rows = ask("--dataset", "EuroSAT")
    assert code == 1 and rows["EuroSAT"][2] == "missing"
    assert [line for line in out.splitlines() if "<- https" in line] == [
        "EuroSAT: eurosat/split_zhou_EuroSAT.json <- "
        "https://drive.google.com/file/d/1Ip7yaCWFi0eaOFUGga0lUdVi_DDQth1o/view"
    ]


def test_corrupt_images_are_found_by_decoding_only(root, ask):
    folder = trees.build("FGVCAircraft", root)
    images = sorted((folder / "images").iterdir())
    images[0].write_bytes(b"")
    images[1].write_bytes(trees.JPEG[:-40])
    images[2].write_text("<html>not found</html>")
    code, _, _, rows = ask("--dataset", "FGVCAircraft")
    assert code == 0
    code, out, err, rows = ask("--dataset", "FGVCAircraft", "--deep")
    assert code == 1 and rows["FGVCAircraft"][0] == "images unreadable"
    assert rows["FGVCAircraft"][-1] == "3"
    for image in images[:3]:
        assert len([li for li in out.splitlines() if f"cannot read {image} (" in li]) == 1
    assert "3 of 90 images cannot be read" in out
    assert err == ""  # the progress bar is for terminals


def test_missing_images_are_counted_and_the_first_are_named(root, ask):
    folder = trees.build("FGVCAircraft", root)
    for image in sorted((folder / "images").iterdir())[:12]:
        image.unlink()
    code, out, _, rows = ask("--dataset", "FGVCAircraft")
    assert code == 1 and rows["FGVCAircraft"][0] == "images missing"
    assert out.count("there is no image") == doctor.SHOWN and "12 of 90 images" in out


def test_faulty_annotations_are_told_in_one_line(root, ask):
    folder = trees.build("FGVCAircraft", root)
    trees.text(folder / "images_variant_test.txt", "1 Concorde")
    code, out, _, rows = ask("--dataset", "FGVCAircraft")
    assert code == 1 and rows["FGVCAircraft"][0] == "faulty"
    lines = [line for line in out.splitlines() if "Concorde" in line]
    assert len(lines) == 1 and lines[0].startswith("FGVCAircraft: ")


@pytest.mark.parametrize(
    "options, message",
    [
        (["--dataset", "Pets"], "unknown data set Pets: there are ImageNet, Caltech101"),
        (["--make-split"], "--make-split needs --dataset NAME"),
        (["--dataset", "ImageNet", "--make-split"], "ImageNet has no split file"),
        (["--dataset", "SUN397", "--make-split"], "there is no .*sun397/SUN397"),
        (["--root", "/nowhere"], "there is no folder /nowhere: point --root"),
    ],
)
def test_bad_input_is_told_in_one_line_with_code_2(ask, options, message):
    code, out, err, _ = ask(*options)
    assert code == 2 and not out
    assert err.count("\n") == 1 and err.startswith("error: ")
    assert re.search(message, err)


def test_unknown_flags_are_told_in_one_line_with_code_2(ask):
    code, out, err, _ = ask("--depe")
    assert code == 2 and not out
    assert err == "error: unrecognized arguments: --depe (--help tells the flags)\n"
