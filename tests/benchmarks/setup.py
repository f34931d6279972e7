"""`--setup`: installs what contenders need into a cache outside the repository.

Only this module downloads anything, and only when asked. Versions are pinned, so that figures of
different days compare; the report names them.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

PYTHON_PACKAGES: Final = ("celery[redis]==5.7.0", "requests==2.34.2")
NODE_PACKAGES: Final = ("bullmq@6.7.0", "ioredis@5", "undici@7")


def default_cache() -> Path:
    """Where the parts are kept, and the compiled receiver."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "primeflowd-benchmarks"


def python_of(cache: Path) -> Path:
    """The Python that has Celery."""
    return cache / "celery" / "bin" / "python"


def node_modules_of(cache: Path) -> Path:
    return cache / "bullmq" / "node_modules"


def install(cache: Path) -> None:
    """Install what is missing. What cannot be installed is said and left out."""
    cache.mkdir(parents=True, exist_ok=True)
    for what, step in (("Redis", _redis), ("Celery", _celery), ("BullMQ", _bullmq)):
        try:
            step(cache)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"{what} could not be installed: {error}", file=sys.stderr)


def _redis(_: Path) -> None:
    if shutil.which("redis-server") is None:
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        _run("apt-get", "update", environment=environment)
        _run(
            "apt-get", "install", "--yes", "--no-install-recommends", "redis-server",
            environment=environment,
        )  # fmt: skip


def _celery(cache: Path) -> None:
    _run(sys.executable, "-m", "venv", str(cache / "celery"))
    _run(str(python_of(cache)), "-m", "pip", "install", "--quiet", *PYTHON_PACKAGES)


def _bullmq(cache: Path) -> None:
    directory = node_modules_of(cache).parent
    directory.mkdir(exist_ok=True)
    _run("npm", "install", "--no-audit", "--no-fund", "--prefix", str(directory), *NODE_PACKAGES)


def _run(*words: str, environment: dict[str, str] | None = None) -> None:
    print("$", *words, flush=True)
    environment = dict(environment or os.environ)
    # An environment of its own: what this one can import is none of its business.
    environment.pop("PYTHONPATH", None)
    subprocess.run(words, check=True, env=environment)
