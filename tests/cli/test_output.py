"""What commands print, on a terminal and into a pipe."""

import fcntl
import os
import re
import struct
import subprocess
import sys
import termios

ID = "01920000-0000-7000-8000-00000000abcd"
TIME = "2026-05-06T10:00:00Z"
HEADINGS = ("CALLBACK", "URL", "REASON")
URL = "https://callbacks.example.com/a/path/of/some/length"

TABLE = f"""
from primeflowd.cli.output import print_table
print_table(
    ("ID", "STATUS", "ATTEMPTS", "NEXT", "CREATED", "CALLBACK URL", "REASON"),
    [("{ID}", "pending", "1/4", "{TIME}", "{TIME}", "{URL}", "connection_error")],
)
print_table(("", "N"), [("x" * 500, 7)], numbers=("N",))
"""


def printed_on_a_terminal(code: str, columns: int) -> str:
    """What a terminal so wide is sent, without its escape sequences."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=theirs, stdout=theirs, env=environment
    ) as process:
        os.close(theirs)
        sent = b""
        try:
            while more := os.read(ours, 65536):
                sent += more
        except OSError:  # how Linux says that the other side has closed
            pass
        finally:
            os.close(ours)
    assert process.returncode == 0
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", sent.decode()).replace("\r", "")


def test_a_narrow_terminal_is_shown_everything() -> None:
    """A row that does not fit is one line, which the terminal folds; else columns are folded."""
    heading, row, _, *folded = printed_on_a_terminal(TABLE, 80).splitlines()
    assert heading.split() == [*("ID", "STATUS", "ATTEMPTS", "NEXT", "CREATED"), *HEADINGS]
    assert row.split() == [ID, "pending", "1/4", TIME, TIME, URL, "connection_error"]
    assert sum(line.count("x") for line in folded) == 500
    assert max(map(len, folded)) <= 80


def test_a_wide_terminal_has_one_line_a_row() -> None:
    row = printed_on_a_terminal(TABLE, 200).splitlines()[1]
    assert row.split() == [ID, "pending", "1/4", TIME, TIME, URL, "connection_error"]


def test_what_fits_when_it_is_folded_is_folded() -> None:
    first, second, *_ = printed_on_a_terminal(TABLE, 140).splitlines()[1:]
    assert first.split() == [ID, "pending", "1/4", TIME, TIME, URL[:21], "connection_error"]
    assert second.split() == [URL[21:42]]
