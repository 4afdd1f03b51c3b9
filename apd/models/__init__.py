"""Trained prompts as an image classifier: load, predict, save, share."""

from apd.models.classifier import Prediction, PromptedClassifier
from apd.models.sources import load, zero_shot

__all__ = ["Prediction", "PromptedClassifier", "load", "zero_shot"]
