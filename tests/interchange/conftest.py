import pytest
import torch


@pytest.fixture(scope="session")
def weights(tiny):
    """The state dict of the tiny CLIP."""
    return torch.load(tiny.clip, weights_only=True)


@pytest.fixture
def evaluate(run):
    """Function: ``train.py --eval-only`` on a folder; arguments as ``run``."""

    def evaluate(method, folder, *options, flags=()):
        flags = ("--eval-only", "--model-dir", str(folder), *flags)
        return run(method, None, *options, flags=flags)

    return evaluate
