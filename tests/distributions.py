"""Throwaway distributions with a plugin each, laid out on disk as an installer does it."""

import itertools
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

from primeflowd.config import Config, from_mapping

Install = Callable[..., None]
_serial = itertools.count()

HEAD = """
from primeflowd.hookspecs import hookimpl
from primeflowd.model import Verdict
"""


class Distributions:
    """A directory to be put on the import path."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def install(
        self,
        name: str,
        source: str,
        *,
        distribution: str = "",
        api: int | str | None = 1,
        attribute: str = "",
    ) -> None:
        """A plugin `name` with this module.

        `api` is the HOOK_API that it has, None for none; `attribute` is the object in the module
        that the entry point names.
        """
        # A module of its own each time: one imported by another test must not answer for it.
        module = f"plugin_of_a_test_{next(_serial)}"
        distribution = distribution or f"primeflowd-{name}"
        version = "" if api is None else f"HOOK_API = {api!r}\n"
        (self.directory / f"{module}.py").write_text(HEAD + version + dedent(source))
        info = self.directory / f"{distribution.replace('-', '_')}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n"
        )
        target = f"{module}:{attribute}" if attribute else module
        (info / "entry_points.txt").write_text(f"[primeflowd]\n{name} = {target}\n")


def enabling(*names: str, **tables: Any) -> Config:
    return from_mapping({**tables, "plugins": {"enable": list(names)}})
