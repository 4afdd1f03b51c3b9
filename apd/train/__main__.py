import sys

from apd.train.command import main

if __name__ == "__main__":
    sys.exit(main())
