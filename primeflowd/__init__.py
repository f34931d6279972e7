"""primeflowd: a daemon that delivers batch callbacks."""

from importlib.metadata import version

__version__ = version("primeflowd")
