"""Number formats of passes through the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from apd.choices import PRECISIONS

# the type that autocast computes in; None: no autocast. Training in amp has a gradient scaler. fp16
# is CoOp's and MAPT's name for that, and is read as amp here, because the weights stay float32
DTYPES = dict(zip(PRECISIONS, (None, torch.bfloat16, torch.float16, torch.float16)))


def forbid_tf32() -> None:
    """Let convolutions compute in full float32, as attacks and their verdicts must.

    By default, PyTorch lets cuDNN round the factors of convolutions to TF32 (10 bits).
    """
    torch.backends.cudnn.allow_tf32 = False


@contextmanager
def full_float32() -> Iterator[None]:
    """A context in which neither convolutions nor matrix products round to TF32.

    The caller's settings are restored at its end.
    """
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    try:
        forbid_tf32()
        torch.set_float32_matmul_precision("highest")
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before[0]
        torch.set_float32_matmul_precision(before[1])
