"""Clean and robust accuracy of a model on a data loader."""

from apd.evaluate.loop import evaluate

__all__ = ["evaluate"]
