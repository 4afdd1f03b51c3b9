"""The metadata in exported files."""

from __future__ import annotations

import json

from apd.models.classifier import PromptedClassifier
from apd.models.saved import to_config


def as_json(classifier: PromptedClassifier) -> str:
    """The text of a saved classifier's config.json (``apd.models.saved``)."""
    return json.dumps(to_config(classifier.model, classifier.description))


def metadata(classifier: PromptedClassifier) -> dict[str, str]:
    """The metadata of ONNX and safetensors files: texts by their names."""
    return {"class_names": json.dumps(classifier.class_names), "config.json": as_json(classifier)}
