"""CoOp's entry point: see ``apd/train/command.py``."""

import sys

from apd.train.command import main

sys.exit(main())
