import sys

from apd.sweep.cli import main

if __name__ == "__main__":
    sys.exit(main())
