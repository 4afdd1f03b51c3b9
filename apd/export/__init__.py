"""A classifier in the formats of other programs: ONNX, torch.export, OpenCLIP, a plain matrix."""

from typing import NamedTuple


class Format(NamedTuple):
    """How a format is written.

    Attributes:
        suffix: of its files; "": it is a folder.
        module, writer: of the function that writes a classifier to a path. It returns a function
            from images to logits that computes with the written file.
    """

    suffix: str
    module: str
    writer: str


FORMATS = {
    "onnx": Format(".onnx", "apd.export.graph", "write_onnx"),
    "exported": Format(".pt2", "apd.export.graph", "write_exported"),
    "openclip": Format("", "apd.export.matrix", "write_openclip"),
    "weights": Format(".safetensors", "apd.export.matrix", "write_weights"),
}
