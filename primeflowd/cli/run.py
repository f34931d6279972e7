"""`run`: the daemon in the foreground."""

import signal
import sys
from functools import partial
from pathlib import Path
from typing import Final

import click
import structlog
import trio

from primeflowd import daemon, log
from primeflowd.cli.master_key import key_file, readable_by_others
from primeflowd.cli.options import config_option, load_again, load_config
from primeflowd.cli.visit import visit
from primeflowd.config import Config
from primeflowd.errors import PrimeflowdError
from primeflowd.plugins import Plugins

logger = structlog.get_logger()

INTERNAL_ERROR: Final = 70
"""Exit code of a crash that is a bug: EX_SOFTWARE of sysexits.h."""


@click.command()
@config_option
def run(path: Path | None) -> None:
    """Run the daemon until SIGTERM or SIGINT. SIGHUP has it reload its configuration.

    Logs to standard error. Exits with 0 after a drain, with 1 for what the operator must mend and
    with 70 for a bug.
    """
    # Until the daemon listens to it; else a reload that comes early would be its end.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    config, origin = load_config(path)
    log.configure(config.log)
    logger.info("starting", config=origin)
    master_key = key_file(config)
    if master_key and readable_by_others(master_key):
        logger.warning(
            "master_key_readable_by_others", path=str(master_key), hint=f"chmod 600 {master_key}"
        )
    try:
        plugins = Plugins(config)
        for name in plugins.idle:
            logger.warning("plugin_not_enabled", plugin=name, hint="it has settings all the same")
        if _has_no_key(config, plugins):
            given = f" --config {origin}" if path else ""
            logger.warning("no_api_key", hint=f"primeflowd keys create --org ORG{given}")
        trio.run(daemon.run, config, plugins, partial(load_again, origin))
    except Exception as error:
        if _on_purpose(error):
            raise
        # The process's edge: whatever it is, it goes on record as one line before the end.
        logger.critical("crashed", exc_info=True)
        sys.exit(INTERNAL_ERROR)


def _has_no_key(config: Config, plugins: Plugins) -> bool:
    """Whether nobody could call the API; a storage that only the daemon sees is not asked."""
    if config.storage_url.startswith("memory:"):
        return False
    return not visit(config, lambda storage: storage.read(lambda tx: tx.keys(None)), plugins)


def _on_purpose(error: Exception) -> bool:
    if isinstance(error, ExceptionGroup):
        return error.split(PrimeflowdError)[1] is None
    return isinstance(error, PrimeflowdError)
