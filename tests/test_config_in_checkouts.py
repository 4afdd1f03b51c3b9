"""What a checkout's config does once ``extend_cfg`` has been called on it."""

import pytest

import apd
from apd.clip.foreign import MEAN, STD
from apd.config import extend_cfg
from apd.errors import UserError
from apd.host import TRAINER_REGISTRY, get_cfg_default

apd.register()


@pytest.fixture
def theirs(monkeypatch):
    """Function: the checkout has a trainer of this name, with these attributes."""

    def register(name, **attributes):
        trainer, get = type(name, (), attributes), TRAINER_REGISTRY.get
        monkeypatch.setattr(
            TRAINER_REGISTRY, "get", lambda wanted: trainer if wanted == name else get(wanted)
        )

    return register


def frozen(trainer, path="configs/trainers/IVLP/vit_b16.yaml"):
    """A checkout's own way: files, then attributes, then the command line, then frozen."""
    cfg = get_cfg_default()
    extend_cfg(cfg)
    cfg.merge_from_file("configs/datasets/digits.yaml")
    cfg.merge_from_file(str(path))
    cfg.TRAINER.NAME = trainer
    cfg.merge_from_list(["SEED", "3", "AT.TEST.EPS", "2.0"])
    cfg.freeze()
    return cfg


def test_our_config_normalises_for_a_trainer_of_the_checkout(theirs, capsys):
    ours = frozen("IVLP")
    assert "note" not in capsys.readouterr().out
    theirs("IVLP")
    cfg = frozen("IVLP")
    (line,) = capsys.readouterr().out.splitlines()
    assert "normalize is added to INPUT.TRANSFORMS" in line
    assert cfg.INPUT.TRANSFORMS == (*ours.INPUT.TRANSFORMS, "normalize")
    assert (tuple(cfg.INPUT.PIXEL_MEAN), tuple(cfg.INPUT.PIXEL_STD)) == (MEAN, STD)
    ours.defrost()
    for key in ("TRANSFORMS", "PIXEL_MEAN", "PIXEL_STD"):
        ours.INPUT[key] = cfg.INPUT[key]
    ours.freeze()
    assert cfg == ours  # nothing else is changed
    again = cfg.clone()
    again.freeze()
    assert again == cfg and not capsys.readouterr().out


def test_a_trainer_that_normalises_and_a_config_of_the_checkout_stay(theirs, capsys, tmp_path):
    (tmp_path / "theirs.yaml").write_text("INPUT: {TRANSFORMS: [random_flip]}")
    theirs("IVLP")
    assert list(frozen("IVLP", tmp_path / "theirs.yaml").INPUT.TRANSFORMS) == ["random_flip"]
    theirs("AdvIVLP", normalizes=True)
    assert "normalize" not in frozen("AdvIVLP").INPUT.TRANSFORMS
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    "options, message",
    [
        (["TRAINER.APD.LAMBA", "1"], "there is no key TRAINER.APD.LAMBA: did you mean"),
        (["DATASET.NUM_SHOTS", "four"], "DATASET.NUM_SHOTS is four: use a whole number from 1"),
        (["DATASET.NUM_SHOTS", "1.5"], "DATASET.NUM_SHOTS is 1.5: use a whole number from 1"),
        (["TRAINER", "1"], "command line: TRAINER is 1: use"),
        (["SEED", "1", "AT.TEST.EPS"], "AT.TEST.EPS stands alone"),
    ],
)
def test_a_command_line_that_is_wrong_is_told_in_one_line(options, message):
    cfg = get_cfg_default()
    extend_cfg(cfg)
    with pytest.raises(UserError, match=message) as error:
        cfg.merge_from_list(options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("TRAINER", "APDD", 'unknown trainer "APDD" .--trainer.; did you mean .*APD'),
        ("DATASET", "Digit", 'unknown dataset "Digit" .DATASET.NAME.; did you mean .*Digits'),
    ],
)
def test_unknown_names_are_told_in_one_line(key, value, message):
    cfg = get_cfg_default()
    extend_cfg(cfg)
    cfg.TRAINER.NAME, cfg.DATASET.NAME = "APD", "Digits"
    cfg[key].NAME = value
    with pytest.raises(UserError, match=message) as error:
        cfg.freeze()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    ["OPTIM: &a {LR: *a}", "OPTIM: &a [*a]", "[" * 100_000, "OPTIM: {LRR: 1}", "- 1", "a: ["],
)
def test_files_that_are_wrong_are_told_in_one_line(tmp_path, text):
    (tmp_path / "a.yaml").write_text(text)
    cfg = get_cfg_default()
    extend_cfg(cfg)
    with pytest.raises(UserError, match="a.yaml: ") as error:
        cfg.merge_from_file(str(tmp_path / "a.yaml"))
    assert "\n" not in str(error.value)
