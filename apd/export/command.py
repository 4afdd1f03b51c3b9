"""Write the classifier of a run in the format of another program.

    apd-export output/clothing/APD/mini_photo_16shots/seed1 clothing.onnx --format onnx

Normalisation is inside; images are RGB in [0, 1]. What was written is read again and its logits
compared with the model's own, before the file is there.
"""

from __future__ import annotations

import sys
from pathlib import Path

from apd.commandline import Parser
from apd.errors import exit_codes
from apd.export import FORMATS
from apd.models.arguments import SOURCES, add_flags, classifier


@exit_codes
def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="apd-export", description=__doc__)
    parser.add_argument("source", metavar="RUN", help=SOURCES)
    parser.add_argument("target", metavar="OUT", type=Path, help="file (openclip: folder) to write")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        required=True,
        help="onnx; exported: torch.export's archive; openclip: a CLIP for OpenCLIP and the "
        "matrix of the classes; weights: that matrix alone (both: no visual prompts)",
    )
    add_flags(parser)
    args = parser.parse_args(argv)

    from apd.export.formats import export  # with PyTorch

    difference = export(classifier(args.source, args), args.target, args.format)
    print(f"Wrote {args.target}; its logits are within {difference:.1e} of the model's")
    return 0


if __name__ == "__main__":
    sys.exit(main())
