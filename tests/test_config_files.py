"""Files of configs are read once, and every run has a config of its own."""

import pytest
from yacs.config import CfgNode

from apd import config


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("INPUT: {TRANSFORMS: [random_flip]}\nOPTIM: {LR: 0.5}\n")
    return path


def test_a_file_that_has_changed_is_read_again(written):
    assert config.of_files([str(written)]).OPTIM.LR == 0.5
    written.write_text("OPTIM: {LR: 0.25}\n")
    assert config.of_files([str(written)]).OPTIM.LR == 0.25


def test_later_files_win(written, tmp_path):
    other = tmp_path / "b.yaml"
    other.write_text("OPTIM: {LR: 0.1}\n")
    both = config.of_files([str(written), str(other)])
    assert both.OPTIM.LR == 0.1 and list(both.INPUT.TRANSFORMS) == ["random_flip"]


def test_what_is_changed_in_one_config_is_in_no_other(written):
    first, second = (config.of_files([str(written)]) for _ in range(2))
    assert first == second == first.clone() and type(first) is type(config.default())
    first.AT.TEST.ATTACKS.append("fgsm")
    first.OPTIM.LR = 7.0
    CfgNode.freeze(first)
    assert second.OPTIM.LR == 0.5 and second.AT.TEST.ATTACKS == []
    second.OPTIM.LR = 8.0  # not frozen
    assert config.of_files([str(written)]).OPTIM.LR == 0.5


def test_a_sweep_reads_a_file_once_however_many_cells_name_it(tmp_path, monkeypatch):
    from apd.sweep.command import main

    spec = tmp_path / "spec.yaml"
    spec.write_text(
        "grid: {trainer: CoOp, config: vit_b32, dataset: [dtd, eurosat], shots: [1, 2, 4, 8, 16],"
        " seed: [1, 2, 3, 4, 5]}\n"
    )
    read, real = [], config.read_yaml
    monkeypatch.setattr(config, "read_yaml", lambda path: read.append(path) or real(path))
    config._of_files.cache_clear()
    assert main([str(spec), "--output", str(tmp_path / "output"), "--dry-run"]) == 0
    assert len(read) == 2 * 2  # the method's file with each of the data sets
