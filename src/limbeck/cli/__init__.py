"""The command line. Torch and the libraries that come with it are imported by the commands that need them, when they run."""

from .entry import main

__all__ = ["main"]
