"""Fixtures of sweeps over runs of a second on the tiny CLIP, for tests of sweeps and of jobs."""

import pytest
import yaml

from apd.results import read_results

SHORT = {"OPTIM.MAX_EPOCH": 1, "AT.TEST.STEPS": 2, "TRAIN.CHECKPOINT_FREQ": 1}


@pytest.fixture
def write_spec(tiny, tmp_path):
    """Function: the path of a sweep over ``tiny``, its grid and other keys as given."""
    dataset = tmp_path / "shapes.yaml"
    dataset.write_text("DATASET: {NAME: Folder, FOLDER: {DIR: shapes}}\n")

    def write_spec(grid=(), name="spec", **more):
        spec = {
            "output": str(tmp_path / "output"),
            "root": tiny.root,
            "grid": {
                "trainer": "CoOp",
                "config": tiny.config,
                "dataset": str(dataset),
                "shots": 1,
                "seed": 1,
                **dict(grid),
            },
            "set": {"MODEL.BACKBONE.NAME": tiny.clip, **SHORT},
        }
        for key, value in more.items():
            spec[key] = {**spec[key], **value} if key == "set" else value
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(spec, sort_keys=False))
        return path

    return write_spec


def _verdicts(folder):
    return [(e["attack"], e["correct"], e["total"]) for e in read_results(folder)["evaluations"]]


@pytest.fixture
def serial(run):
    """Function: run a sweep's cells one after another with ``train.py``, in another output folder.

    Returns a function that tells whether a cell came to the same verdicts and prompts there.
    """
    import torch

    def serial(cells, output):
        copies = {}
        for cell in cells:
            folder = cell.folder.replace(cell.output, str(output), 1)
            argv = [folder if a == cell.folder else a for a in cell.argv]
            assert run.call(argv).code == 0
            copies[cell] = folder
        return lambda cell: same(cell.folder, copies[cell])

    def same(folder, other):
        from pathlib import Path

        prompts = [
            {
                (path.relative_to(run_folder), name): value
                for path in sorted(Path(run_folder).glob("*/model.pth.tar-*"))
                for name, value in torch.load(path, weights_only=True)["state_dict"].items()
            }
            for run_folder in (folder, other)
        ]
        return (
            _verdicts(folder) == _verdicts(other)
            and prompts[0].keys() == prompts[1].keys()
            and all(torch.equal(value, prompts[1][key]) for key, value in prompts[0].items())
        )

    return serial
