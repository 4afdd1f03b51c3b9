import io
import random
import re
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from apd.host import (
    HOST,
    AverageMeter,
    Logger,
    MetricMeter,
    check_isfile,
    collect_env_info,
    count_num_param,
    listdir_nohidden,
    mkdir_if_missing,
    read_image,
    read_json,
    set_random_seed,
    setup_logger,
    tolist_if_not,
    write_json,
)


def replace_stdout(monkeypatch):
    """A stdout that may be lost: upstream's Logger closes its console when it goes."""
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    return sys.stdout


def test_log_goes_to_console_and_file(tmp_path, monkeypatch):
    console = replace_stdout(monkeypatch)
    setup_logger(str(tmp_path / "run"))
    assert isinstance(sys.stdout, Logger) and sys.stdout.console is console
    print("hello")
    sys.stdout.flush()
    assert (tmp_path / "run" / "log.txt").read_text() == console.getvalue() == "hello\n"


def test_an_existing_log_is_kept(tmp_path, monkeypatch):
    replace_stdout(monkeypatch)
    (tmp_path / "log.txt").write_text("old\n")
    setup_logger(str(tmp_path))
    print("new")
    sys.stdout.flush()
    assert (tmp_path / "log.txt").read_text() == "old\n"
    (other,) = [path for path in tmp_path.iterdir() if path.name != "log.txt"]
    assert re.fullmatch(r"log\.txt-\d{4}-\d\d-\d\d-\d\d-\d\d-\d\d", other.name)
    assert other.read_text() == "new\n"


@pytest.mark.skipif(HOST == "dassl", reason="upstream overwrites a log of the same second")
def test_logs_of_the_same_second_are_kept(tmp_path, monkeypatch):
    console = replace_stdout(monkeypatch)
    monkeypatch.setattr(time, "strftime", lambda form: "-now")
    for word in ("first", "second", "third"):
        setup_logger(str(tmp_path))
        print(word)
        sys.stdout.flush()
        sys.stdout = console
    assert (tmp_path / "log.txt").read_text() == "first\n"
    assert (tmp_path / "log.txt-now").read_text() == "second\nthird\n"


def test_log_file_by_name_or_none(tmp_path, monkeypatch):
    console = replace_stdout(monkeypatch)
    setup_logger(None)
    assert sys.stdout is console
    setup_logger(str(tmp_path / "train.log"))
    assert (tmp_path / "train.log").exists()


def test_average_meter():
    meter = AverageMeter()
    meter.update(2.0)
    meter.update(torch.tensor(5.0), n=2)
    assert (meter.val, meter.sum, meter.count, meter.avg) == (5.0, 12.0, 3, 4.0)
    meter = AverageMeter(ema=True)
    meter.update(1.0)
    meter.update(1.0)
    assert meter.avg == pytest.approx(0.19)


def test_metric_meter():
    meter = MetricMeter()
    meter.update({"loss": 1.0, "acc": torch.tensor(50.0)})
    meter.update({"loss": 2.0})
    meter.update(None)
    assert str(meter) == "loss 2.0000 (1.5000) acc 50.0000 (50.0000)"
    with pytest.raises(TypeError):
        meter.update([1.0])


def test_json_round_trip_in_a_new_folder(tmp_path):
    path = str(tmp_path / "new" / "split.json")
    write_json({"train": [["a.png", 0, "ant"]]}, path)
    assert read_json(path) == {"train": [["a.png", 0, "ant"]]}
    assert '\n    "train"' in (tmp_path / "new" / "split.json").read_text()


def test_folders_and_files(tmp_path):
    folder = str(tmp_path / "a" / "b")
    mkdir_if_missing(folder)
    mkdir_if_missing(folder)
    for name in ("z", "y", ".hidden"):
        (tmp_path / "a" / "b" / name).touch()
    assert listdir_nohidden(folder, sort=True) == ["y", "z"]
    assert sorted(listdir_nohidden(folder)) == ["y", "z"]
    assert check_isfile(f"{folder}/z")
    with pytest.warns(UserWarning):
        assert not check_isfile(f"{folder}/none")


def test_images_are_read_as_rgb(tmp_path):
    Image.new("RGBA", (3, 2), (1, 2, 3, 0)).save(tmp_path / "a.png")
    image = read_image(str(tmp_path / "a.png"))
    assert (image.mode, image.size, image.getpixel((0, 0))) == ("RGB", (3, 2), (1, 2, 3))


def test_one_seed_for_all_generators():
    draws = []
    for _ in range(2):
        set_random_seed(3)
        draws.append((random.random(), np.random.rand(), torch.rand(1).item()))
    assert draws[0] == draws[1]


def test_small_helpers():
    assert tolist_if_not("a") == ["a"] and tolist_if_not(["a"]) == ["a"]
    model = torch.nn.Linear(4, 2)
    assert count_num_param(model) == count_num_param(params=model.parameters()) == 10
    assert count_num_param(params=[{"params": model.weight}]) == 8
    with pytest.raises(ValueError):
        count_num_param()


def test_environment_names_torch():
    assert torch.__version__ in collect_env_info()
