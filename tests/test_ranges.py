"""Config keys and flags: what they take, how texts are read, and what is said of the others."""

import pytest
import yaml

import apd
from apd.arguments.evaluate import main as evaluate
from apd.config import check, flat, merge, rule_of
from apd.errors import UserError
from apd.host import get_cfg_default
from apd.ranges import rule_like
from apd.sweep.command import main as sweep
from apd.tables.command import main as table
from apd.train.command import main as train


@pytest.fixture
def cfg():
    cfg = get_cfg_default()
    apd.extend_cfg(cfg)
    return cfg


def value_of(cfg, key):
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def test_every_number_has_a_range(cfg):
    """So that a new key is not forgotten."""
    numbers = [
        key
        for key, value in flat(cfg)
        if value is None
        or type(value) in (int, float)
        or (isinstance(value, list) and value and type(value[0]) in (int, float))
    ]
    assert len(numbers) > 80
    assert [key for key in numbers if rule_of(key) is None] == []


def test_every_default_is_in_its_range(cfg):
    check(cfg)


@pytest.mark.parametrize(
    "key, value",
    [
        *(("AT.TEST.SUBSET", value) for value in ("-3", "1.5", "x", "None")),
        ("DATALOADER.TEST.BATCH_SIZE", "0"),
        ("DATALOADER.TRAIN_X.BATCH_SIZE", "-4"),
        ("DATALOADER.NUM_WORKERS", "-1"),
        *(("OPTIM.LR", value) for value in ("-0.1", "0", "nan", "inf", "1e999", "True", "[1]")),
        ("OPTIM.WEIGHT_DECAY", "-1"),
        ("OPTIM.MOMENTUM", "-0.9"),
        ("OPTIM.MAX_EPOCH", "0"),
        ("TRAIN.PRINT_FREQ", "0"),
        ("DATASET.NUM_SHOTS", "0"),
        ("DATASET.NUM_SHOTS", "-2"),
        ("INPUT.SIZE", "(0, 32)"),
        ("INPUT.SIZE", "32"),
        ("INPUT.PIXEL_STD", "[1, 1, 0]"),
        ("AT.TEST.EPS", "-1"),
        ("AT.TEST.EPS", "4/256"),
        ("AT.TRAIN.STEPS", "-1"),
        ("AT.TEST.RESTARTS", "0"),
        ("TEST.SPLIT", "valid"),
        ("TRAINER.APD.N_CTX_TEXT", "0"),
        ("TRAINER.APD.TAU", "0"),
        ("TRAINER.APD.TEACHER.MODE", "onlin"),
        ("TRAINER.COOP.CSC", "1"),
    ],
)
def test_what_a_key_does_not_take_is_refused_with_what_it_takes(cfg, key, value):
    before = yaml.safe_dump(dict(flat(cfg)))
    with pytest.raises(UserError) as error:
        merge(cfg, [(key, value)], "command line")
    assert str(error.value) == (
        f"command line: {key} is {value}: use {rule_of(key) or rule_like(value_of(cfg, key))}"
    )
    assert yaml.safe_dump(dict(flat(cfg))) == before


def test_what_it_takes_is_said_in_words():
    assert str(rule_of("AT.TEST.SUBSET")) == "a whole number from 0 (0: all)"
    assert str(rule_of("DATASET.NUM_SHOTS")) == "a whole number from 1, or -1 (all images)"
    assert str(rule_of("OPTIM.LR")) == "a number above 0"
    assert str(rule_of("OPTIM.MOMENTUM")) == "a number from 0 to 1"
    assert str(rule_of("AT.TEST.NORM")) == "linf or l2"


@pytest.mark.parametrize(
    "key, text, value",
    [
        ("OPTIM.LR", "1", 1.0),
        ("OPTIM.LR", "1e-3", 0.001),
        ("DATASET.FOLDER.DIR", "2024", "2024"),
        ("DATASET.FOLDER.DIR", "007", "007"),
        ("DATASET.FOLDER.DIR", "'a b'", "a b"),
        ("AT.TEST.EPS", "4/255", 4),
        ("AT.TRAIN.ALPHA", "0.5 / 255", 0.5),
        ("AT.TEST.ATTACKS", "pgd-100,autoattack", ["pgd-100", "autoattack"]),
        ("AT.TEST.ATTACKS", "['pgd-100']", ["pgd-100"]),
        ("INPUT.TRANSFORMS", "random_flip", ("random_flip",)),
        ("INPUT.SIZE", "[32, 32]", (32, 32)),
        ("OPTIM.STEPSIZE", "10", (10,)),
        ("TRAINER.PROMPT.TEMPLATES", "a {}, a pet.", ["a {}, a pet."]),
        ("TRAINER.COOP.CSC", "true", True),
    ],
)
def test_a_text_is_read_as_its_key_wants_it(cfg, key, text, value):
    merge(cfg, [(key, text)], "command line")
    found = value_of(cfg, key)
    assert found == value and type(found) is type(value)


def test_a_fraction_of_255_is_told(cfg, capsys):
    merge(cfg, [("AT.TRAIN.EPS", "3/255")], "command line")
    assert capsys.readouterr().out == "note: AT.TRAIN.EPS 3/255 is read as 3: its unit is 1/255\n"


def test_a_number_for_a_text_in_yaml_says_how_to_write_it(cfg):
    with pytest.raises(UserError, match="mine: DATASET.FOLDER.DIR is 2024: use text .*quotes"):
        merge(cfg, [("DATASET.FOLDER.DIR", 2024)], "mine")


def test_a_config_of_another_program_is_checked_too(cfg):
    """In a CoOp checkout, its own yacs has read the values."""
    cfg.AT.TEST.EPS = "4/255"
    with pytest.raises(UserError, match="AT.TEST.EPS is 4/255: use a number from 0"):
        check(cfg)


@pytest.mark.parametrize(
    "command, flags",
    [
        (train, ("--seed", "-3")),
        (train, ("--load-epoch", "0")),
        (train, ("--seed",)),
        (evaluate, ("run", "--subset", "-3")),
        (evaluate, ("run", "--eps", "1,-2")),
        (evaluate, ("run", "--eps", "abc")),
        (evaluate, ("run", "--split", "valid")),
        (sweep, ("spec.yaml", "--jobs", "0")),
        (sweep, ("spec.yaml", "--seed", "-1")),
        (sweep, ("spec.yaml", "--shots", "0")),
        (sweep, ("spec.yaml", "--gpus", "-1")),
        (table, ("run", "--table", "no")),
        (table, ()),
    ],
)
def test_flags_are_checked_in_one_line(command, flags, capsys):
    assert command(list(flags)) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith("error: ") and err.count("\n") == 1


def test_a_key_that_stands_twice_is_refused(tmp_path):
    """YAML's readers take the last one, and drop the first without a word."""
    from apd.files import read_yaml

    (tmp_path / "a.yaml").write_text("OPTIM: {LR: 1.0}\nSEED: 1\nOPTIM: {MAX_EPOCH: 2}\n")
    with pytest.raises(UserError, match="a.yaml: OPTIM stands twice"):
        read_yaml(tmp_path / "a.yaml")


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_text_files_have_any_line_ends_and_a_byte_order_mark(tmp_path, start, end):
    from apd.files import read_text, read_yaml

    (tmp_path / "a.yaml").write_bytes(start + b"SEED: 1" + end + b"VERBOSE: True" + end)
    assert read_text(tmp_path / "a.yaml") == "SEED: 1\nVERBOSE: True\n"
    assert read_yaml(tmp_path / "a.yaml") == {"SEED": 1, "VERBOSE": True}
