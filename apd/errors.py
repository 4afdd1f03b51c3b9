"""Errors that are the user's to mend."""


class UserError(Exception):
    """Bad input, told in one line: what is wrong, where, and how to mend it.

    The command line prints it as ``error: <message>`` and exits with code 2.
    """


class NonFiniteLoss(Exception):
    """Training met a NaN or infinite loss; checkpoints written before it are kept."""


def one_line(error: Exception) -> str:
    """Another library's error as part of a one-line message."""
    # str() of a KeyError is its key in quotes
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    return " ".join(str(text).split())
