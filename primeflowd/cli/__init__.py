"""The command line: one module per group of commands.

Commands print results on standard output and everything else on standard error. What an operator
can mend is raised as OperatorError and printed by `__main__`.
"""

import gc
from importlib import import_module
from typing import Final

import click

from primeflowd import __version__
from primeflowd.cli.whole_help import WholeHelp

_COMMANDS: Final = {
    "run": "primeflowd.cli.run:run",
    "init": "primeflowd.cli.configuration:init",
    "check-config": "primeflowd.cli.configuration:check_config",
    "reload": "primeflowd.cli.reload:reload",
    "plugins": "primeflowd.cli.plugins:plugins",
    "keys": "primeflowd.cli.keys:keys",
    "secrets": "primeflowd.cli.secrets:secrets",
    "migrate": "primeflowd.cli.migrate:migrate",
    "copy-storage": "primeflowd.cli.copy_storage:copy_storage",
    "backup": "primeflowd.cli.backup:backup",
    "restore": "primeflowd.cli.restore:restore",
    "deliveries": "primeflowd.cli.deliveries:deliveries",
    "batches": "primeflowd.cli.batches:batches",
    "destinations": "primeflowd.cli.destinations:destinations",
    "policies": "primeflowd.cli.policies:policies",
    "why": "primeflowd.cli.why:why",
    "qshape": "primeflowd.cli.qshape:qshape",
    "listen": "primeflowd.cli.listen:listen",
    "send": "primeflowd.cli.send:send",
    "demo": "primeflowd.cli.demo:demo",
}


class _LazyGroup(WholeHelp):
    """Imports a command when it is named: `--version` and typing errors need not load Trio."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, _, attribute = _COMMANDS[cmd_name].partition(":")
        # What is loaded stays: looking for garbage in it, time and again, takes a fifth of loading.
        gc.disable()
        try:
            command = getattr(import_module(module), attribute)
        finally:
            gc.enable()
        assert isinstance(command, click.Command)
        return command


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="primeflowd", message="%(prog)s %(version)s")
def primeflowd() -> None:
    """Deliver batch callbacks: signed, frozen, retried, on record, never lost."""
