import pytest
import real_splits

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


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """A data root for the sets that write their images themselves, for tests that leave them."""
    return str(tmp_path_factory.mktemp("written"))


@pytest.fixture(scope="session")
def real_root(tmp_path_factory):
    """A data root with the data sets of COOP_SPLITS."""
    root = tmp_path_factory.mktemp("real")
    for name in real_splits.NAMES:
        real_splits.build(name, root)
    return root
