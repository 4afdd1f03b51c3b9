"""Sweeps over runs of a second on the tiny CLIP."""

import contextlib
import io
from types import SimpleNamespace

import pytest
from sample_sweeps import serial, write_spec  # noqa: F401  fixtures


@pytest.fixture
def sweep(inline):
    """Function: ``apd-sweep`` in this process, its cells too. Returns code, out and err."""
    import apd.sweep.command

    def sweep(*argv):
        out, err = io.StringIO(), io.StringIO()
        inline.started.clear()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = apd.sweep.command.main(list(map(str, argv)))
        return SimpleNamespace(
            code=code, out=out.getvalue(), err=err.getvalue(), started=[*inline.started]
        )

    return sweep
