"""``python -m cddpm`` is ``cddpm``."""

from cddpm.cli import main

if __name__ == "__main__":  # processes that are spawned import this module again
    main()
