"""FastRLHF: train language models from feedback, several times faster and in a fraction of the memory."""

from fastrlhf.version import __version__

__all__ = ["__version__"]
