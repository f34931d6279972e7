"""The `primeflowd` command, and `python -m primeflowd`."""

import sys

import click

from primeflowd.cli import primeflowd
from primeflowd.errors import PrimeflowdError

OPERATOR_ERROR = 1
INTERRUPTED = 130


def main() -> None:
    """Run the command line and exit.

    What people can mend is one line on standard error and exit code 1; click itself exits with 2
    for a command line that it does not understand. Anything else is a bug and keeps its traceback.
    """
    code = 0
    try:
        primeflowd(prog_name="primeflowd")
    # A nursery on the way up wraps even a single exception into a group.
    except* PrimeflowdError as group:
        code = OPERATOR_ERROR
        for error in _leaves(group):
            click.echo(f"primeflowd: error: {' '.join(str(error).split())}", err=True)
    except* KeyboardInterrupt:
        code = INTERRUPTED
    sys.exit(code)


def _leaves(group: BaseExceptionGroup[PrimeflowdError]) -> list[PrimeflowdError]:
    found: list[PrimeflowdError] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


if __name__ == "__main__":
    main()
