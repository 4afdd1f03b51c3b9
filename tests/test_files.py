"""What users' files may hold: plain data, finite, of a depth and size that programs can walk.

Our own are written whole or not at all."""

import errno
import os

import pytest
import torch

from apd import files
from apd.errors import UserError, exit_codes
from apd.files import parse_json, parse_yaml, read_json, read_yaml, write_json, write_tensors

DEEP = "nested more than 50 levels deep"
TENFOLD = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)


@pytest.mark.parametrize(
    "text, message",
    [
        ("[" * 100_000, DEEP),
        ('{"a": ' * 100_000, DEEP),
        ("[" * 52 + "]" * 52, DEEP),
        ("[NaN]", "NaN is no finite number"),
        ("[-Infinity]", "-Infinity is no finite number"),
        ("[1e999]", "1e999 is no finite number"),
        ("9" * 5000, r"limit \(4300( digits)?\) for integer"),  # Python 3.10 leaves out "digits"
        ("{", "Expecting"),
        (b"\xff", "."),
    ],
)
def test_json_that_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_json(text)


@pytest.mark.parametrize(
    "text, message",
    [
        ("[" * 100_000, "nesting"),
        ("- " * 100_000, "nesting"),
        ("a: " + "[" * 52 + "]" * 52, DEEP),
        ("a: &a [*a]", DEEP),
        ("a: &a {b: *a}", DEEP),
        (TENFOLD, "more than 10,000,000 values"),
        ("a: .nan", "nan is no finite number"),
        ("a: -.inf", "-inf is no finite number"),
        ("a: 1\na: 2", "a stands twice, line 1 on"),
        ("a: !!python/name:os.system", "could not determine a constructor"),
    ],
)
def test_yaml_that_is_refused(tmp_path, text, message):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        read_yaml(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_what_is_plain_is_read(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": [1, 2.5, null, "x"]}')
    assert read_json(tmp_path / "a.json") == {"a": [1, 2.5, None, "x"]}
    assert parse_json("[" * 50 + "]" * 50)
    assert parse_yaml("a: &a {b: 1, c: 2.5}\nd: {<<: *a, c: 3}") == {
        "a": {"b": 1, "c": 2.5},
        "d": {"b": 1, "c": 3},
    }


def test_what_is_no_file_is_never_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(UserError, match=f"{name} is no file that can be replaced"):
            write_json(tmp_path / name, {})
    assert (tmp_path / "pipe").is_fifo() and len(list(tmp_path.iterdir())) == 2


# -- a full disk


@pytest.mark.parametrize("numbers", [10, 100_000])  # less, and more, than what a file buffers
def test_tensors_are_written_whole_or_not_at_all(fill, tmp_path, numbers):
    path = tmp_path / "x.pt"
    write_tensors(path, {"x": torch.arange(3)})
    fill(files)
    with pytest.raises(OSError) as caught:
        write_tensors(path, {"x": torch.zeros(numbers)})
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(path)
    assert torch.load(path, weights_only=True)["x"].tolist() == [0, 1, 2]
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_of_torch_that_is_no_files_is_its_own(tmp_path):
    with pytest.raises(Exception, match="pickle|local"):
        write_tensors(tmp_path / "x.pt", lambda: None)
    assert list(tmp_path.iterdir()) == []


def test_a_command_says_which_file_had_no_room(fill, tmp_path, capfd):
    fill(files)
    assert exit_codes(lambda _: write_tensors(tmp_path / "x.pt", torch.zeros(9)))() == 1
    assert capfd.readouterr().err == (
        f"error: {tmp_path / 'x.pt'}: No space left on device: make room, and the same command "
        "goes on\n"
    )
