import pytest

from apd.config import default


@pytest.fixture
def make_cfg(tmp_path):
    """Return a function: data set name and ``KEY, value, ...`` to a config on tmp_path/data."""

    def make(name, *options):
        cfg = default()
        cfg.merge_from_list(
            [
                "DATASET.NAME",
                name,
                "DATASET.ROOT",
                str(tmp_path / "data"),
                "SEED",
                1,
                "INPUT.SIZE",
                (32, 32),
                "DATALOADER.NUM_WORKERS",
                0,
                "DATALOADER.TRAIN_X.BATCH_SIZE",
                8,
                "DATALOADER.TEST.BATCH_SIZE",
                8,
                *options,
            ]
        )
        return cfg

    return make
