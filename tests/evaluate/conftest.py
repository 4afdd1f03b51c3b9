import pytest


@pytest.fixture
def call(capsys):
    """Function: ``apd-eval`` in this process. Returns its exit code, and what it printed."""
    from apd.arguments.evaluate import main

    def call(*args):
        code = main([*map(str, args)])
        out, err = capsys.readouterr()
        return code, out, err

    return call
