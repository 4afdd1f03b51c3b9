"""The whole computation from images to logits as a graph: ONNX and torch.export."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from apd.clip.contexts import IndependentPrompts
from apd.errors import UserError, one_line
from apd.export.metadata import as_json, metadata
from apd.models.classifier import PromptedClassifier

_ONNX_BYTES = 2**31 - 2**20  # of weights: protobuf's limit for a file, less room for the graph
_BATCH = 2**20  # images in one batch of an exported model, at most


class ImagesToLogits(nn.Module):
    """A classifier's image encoder, and its text features as a constant matrix.

    Visual prompts that a method projects from other vectors are constants too; only prompts that
    depend on the image (MMoP's) are computed.

    Shape:
        images (B, 3, R, R) in [0, 1] to logits (B, C), for any B.
    """

    weight: Tensor

    def __init__(self, classifier: PromptedClassifier) -> None:
        super().__init__()
        model = copy.deepcopy(classifier.model)
        self.register_buffer("weight", model.clip.logit_scale.detach().exp() * classifier.text)
        contexts = model.prompt_learner.visual_contexts()
        vectors = [context.detach() for context in contexts if isinstance(context, Tensor)]
        if len(vectors) == len(contexts):
            model.prompt_learner = IndependentPrompts(visual=vectors).requires_grad_(False)
        del model.class_prompts
        for name, _ in [*model.clip.named_children(), *model.clip.named_parameters(recurse=False)]:
            if name != "visual":
                delattr(model.clip, name)
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model.image_features(images) @ self.weight.t()


def write_exported(classifier: PromptedClassifier, path: Path) -> Callable[[Tensor], Tensor]:
    """Write an archive of ``torch.export``, for ``torch.export.load`` and AOTInductor.

    Its extra file ``config.json`` is that of a saved classifier (``apd.models.saved``).

    Returns:
        From images to the logits of the written file.
    """
    program = _export(classifier)
    with open(path, "wb") as file:
        torch.export.save(program, file, extra_files={"config.json": as_json(classifier)})
    with open(path, "rb") as file:
        return torch.export.load(file).module()


def write_onnx(classifier: PromptedClassifier, path: Path) -> Callable[[Tensor], Tensor]:
    """Write an ONNX file with the input ``images`` and the output ``logits``.

    Its metadata are those of ``apd.export.metadata``.

    Returns:
        From images to the logits of the written file.

    Raises:
        UserError: a library is missing, the weights are larger than ONNX files can be, or PyTorch
            cannot convert the model (2.6 cannot).
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  torch.onnx imports it
    except ImportError as error:
        raise UserError(
            f"ONNX needs more libraries ({one_line(error)}): pip install 'apd-clip[onnx]'"
        ) from error
    module = ImagesToLogits(classifier)
    size = sum(tensor.nbytes for tensor in module.state_dict().values())
    if size > _ONNX_BYTES:
        raise UserError(
            f"an ONNX file holds 2 GB, {classifier.description.backbone.name} has "
            f"{size / 2**30:.1f}: use --format exported"
        )
    logging.getLogger("onnxscript").setLevel(logging.ERROR)  # else it logs missed optimisations
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's exporter warns of its own code
        try:
            program = torch.onnx.export(
                _export(classifier),
                input_names=["images"],
                output_names=["logits"],
                dynamo=True,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise UserError(
                f"PyTorch {torch.__version__} cannot convert this model to ONNX: use a newer one, "
                "or --format exported"
            ) from error
    assert program is not None  # with dynamo=True it never is
    model = program.model_proto
    onnx.helper.set_model_props(model, metadata(classifier))
    onnx.save_model(model, path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def logits(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])

    return logits


def _export(classifier: PromptedClassifier) -> torch.export.ExportedProgram:
    images = torch.zeros(2, 3, classifier.resolution, classifier.resolution)
    batch = torch.export.Dim("batch", min=1, max=_BATCH)  # PyTorch 2.6 needs a max
    with torch.no_grad():
        return torch.export.export(
            ImagesToLogits(classifier).eval(),
            (images,),
            dynamic_shapes={"images": {0: batch}},
            strict=False,
        )
