import pytest
import torch

import apd
from apd.methods import METHODS

SHORT = ("OPTIM.MAX_EPOCH", 1, "OPTIM.WARMUP_EPOCH", -1, "AT.TEST.STEPS", 1)


@pytest.fixture(scope="session")
def trained(run, tmp_path_factory):
    """Function: folder of a finished run of a method with these options, and its trainer."""
    root, runs = tmp_path_factory.mktemp("trained"), {}

    def trained(method, *options):
        key = (method, *options)
        if key not in runs:
            folder = root / f"{method}{len(runs)}"
            result = run(method, folder, *SHORT, *options)
            assert (result.code, result.err) == (0, "")
            runs[key] = folder, result.trainer
        return runs[key]

    return trained


@pytest.fixture(scope="session")
def folder(trained):
    """The run of AdvIVLP: prompts of both kinds, trained under attack."""
    return trained("AdvIVLP")[0]


@pytest.fixture
def model(folder):
    return apd.load(folder)


@pytest.fixture(scope="session")
def images():
    return torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=[name for name, method in METHODS.items() if not method.defence])
def method(request):
    """Each method whose prompts classify by themselves."""
    return request.param


@pytest.fixture(scope="session")
def labelled(trained):
    """The test images and labels of the data set ``shapes``."""
    batches = [(b["img"], b["label"]) for b in trained("AdvIVLP")[1].test_loader]
    return tuple(torch.cat(parts) for parts in zip(*batches))
