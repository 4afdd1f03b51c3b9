"""Accuracy and its kin."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from apd.files import write_tensors
from apd.host.embedded.registry import Registry, check_availability

EVALUATOR_REGISTRY = Registry("EVALUATOR")


def build_evaluator(cfg, **kwargs) -> EvaluatorBase:
    """Build the evaluator that ``cfg.TEST.EVALUATOR`` names."""
    check_availability(cfg.TEST.EVALUATOR, EVALUATOR_REGISTRY.registered_names())
    return EVALUATOR_REGISTRY.get(cfg.TEST.EVALUATOR)(cfg, **kwargs)


class EvaluatorBase:
    """``process`` takes batches, ``evaluate`` gives figures, ``reset`` starts again."""

    def __init__(self, cfg) -> None:
        self.cfg = cfg

    def reset(self) -> None:
        raise NotImplementedError

    def process(self, mo: Tensor, gt: Tensor) -> None:
        raise NotImplementedError

    def evaluate(self) -> OrderedDict[str, float]:
        raise NotImplementedError


@EVALUATOR_REGISTRY.register()
class Classification(EvaluatorBase):
    """Accuracy, error rate and macro F1 in percent; per class and as a matrix if asked for."""

    def __init__(self, cfg, lab2cname: dict[int, str] | None = None, **_) -> None:
        super().__init__(cfg)
        self._lab2cname = lab2cname
        self.reset()

    def reset(self) -> None:
        self._y_true: list[int] = []
        self._y_pred: list[int] = []

    def process(self, mo: Tensor, gt: Tensor) -> None:
        """Count a batch: ``mo`` are scores (B, C), ``gt`` labels (B,)."""
        self._y_true += gt.tolist()
        self._y_pred += mo.argmax(1).tolist()

    def evaluate(self) -> OrderedDict[str, float]:
        """Print and return the figures so far; the first one is the accuracy.

        With ``TEST.COMPUTE_CMAT`` the confusion matrix, rows summing to 1, goes to
        ``OUTPUT_DIR/cmat.pt`` as a tensor (C, C).
        """
        from sklearn.metrics import confusion_matrix, f1_score  # slow to import

        true, predicted = np.array(self._y_true), np.array(self._y_pred)
        correct, total = int((true == predicted).sum()), len(true)
        accuracy = 100.0 * correct / total
        f1 = f1_score(true, predicted, average="macro", labels=np.unique(true))
        results = OrderedDict(
            accuracy=accuracy, error_rate=100.0 - accuracy, macro_f1=100.0 * float(f1)
        )
        # CoOp's parse_test_res.py reads these lines
        print("=> result")
        print(f"* total: {total:,}\n* correct: {correct:,}\n* accuracy: {accuracy:.1f}%")
        print(f"* error: {results['error_rate']:.1f}%\n* macro_f1: {results['macro_f1']:.1f}%")
        if self.cfg.TEST.PER_CLASS_RESULT:
            results["perclass_accuracy"] = self._per_class(true, predicted)
        if self.cfg.TEST.COMPUTE_CMAT:
            matrix = confusion_matrix(true, predicted, normalize="true")
            path = Path(self.cfg.OUTPUT_DIR) / "cmat.pt"
            write_tensors(path, torch.from_numpy(matrix))
            print(f"Confusion matrix: {path}")
        return results

    def _per_class(self, true: np.ndarray, predicted: np.ndarray) -> float:
        print("=> per-class result")
        assert self._lab2cname is not None, "TEST.PER_CLASS_RESULT needs lab2cname"
        accuracies = []
        for label in np.unique(true).tolist():
            hits = predicted[true == label] == label
            accuracies.append(100.0 * hits.sum() / len(hits))
            print(
                f"* class: {label} ({self._lab2cname[label]})\ttotal: {len(hits):,}\t"
                f"correct: {hits.sum():,}\tacc: {accuracies[-1]:.1f}%"
            )
        mean = float(np.mean(accuracies))
        print(f"* average: {mean:.1f}%")
        return mean


def compute_accuracy(output, target: Tensor, topk: tuple[int, ...] = (1,)) -> list[Tensor]:
    """Top-k accuracies in percent, each a tensor (1,).

    Args:
        output: scores (B, C), or a tuple that begins with them.
        target: labels (B,).
    """
    scores = output[0] if isinstance(output, (tuple, list)) else output
    hits = scores.topk(max(topk), dim=1).indices == target[:, None]
    return [100.0 * hits[:, :k].any(1).float().mean(0, keepdim=True) for k in topk]
