"""The command line ``treadle``."""

from treadle.cli.main import main

__all__ = ["main"]
