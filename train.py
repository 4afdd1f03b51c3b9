"""CoOp's entry point: see ``apd/train.py``."""

import sys

from apd.train import main

sys.exit(main())
