"""``python -m heddle`` is ``heddle``."""

import sys

if __name__ == "__main__":
    try:
        from heddle.cli import main
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(main())
