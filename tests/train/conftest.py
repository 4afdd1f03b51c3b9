import shutil
from types import SimpleNamespace

import pytest


@pytest.fixture(scope="session")
def runs(run, tmp_path_factory):
    """Folders of finished runs, to read: ``maple``, ``coop`` (base classes), ``csc``, ``apd``."""
    root = tmp_path_factory.mktemp("runs")
    finished = SimpleNamespace(root=root)
    for name, method, *options in (
        ("maple", "MaPLe"),
        ("coop", "CoOp", "DATASET.SUBSAMPLE_CLASSES", "base"),
        ("csc", "CoOp", "TRAINER.COOP.CSC", True, "DATASET.SUBSAMPLE_CLASSES", "base"),
        ("apd", "APD", "TRAIN.CHECKPOINT_FREQ", 1),
    ):
        folder = root / name
        result = run(method, folder, *options)
        assert (result.code, result.err) == (0, "")
        setattr(finished, name, folder)
    return finished


@pytest.fixture
def copy_of(tmp_path):
    """Function: a copy of a run's folder, to damage."""
    return lambda folder: shutil.copytree(folder, tmp_path / f"copy-{folder.name}")


def _contents(folder):
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        if path.is_file()
        else None
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def contents():
    """Function: the files below a folder with their bytes and times."""
    return _contents
