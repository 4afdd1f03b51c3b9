"""Errors that are the user's to mend."""


class UserError(Exception):
    """Bad input, told in one line: what is wrong, where, and how to mend it.

    The command line prints it as ``error: <message>`` and exits with code 2.
    """


class NonFiniteLoss(Exception):
    """Training met a NaN or infinite loss; checkpoints written before it are kept."""
