"""Listening: one port for one process, unless all of them ask to share it."""

import socket

import pytest
import trio

from primeflowd.api.listener import listen, url_of
from primeflowd.errors import OperatorError


def port_of(listener: socket.socket) -> int:
    port: int = listener.getsockname()[1]
    return port


async def test_processes_share_a_port_if_all_ask_for_it() -> None:
    """Section 8: the kernel deals connections out; while one is gone the other has them all."""
    first = await listen("127.0.0.1", 0, reuse_port=True)
    with first, await listen("127.0.0.1", port_of(first), reuse_port=True) as second:
        assert url_of(second) == url_of(first)
        first.close()
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", port_of(second))) as client:
                with trio.fail_after(5):
                    await trio.lowlevel.wait_readable(second)
                accepted, address = second.accept()
                accepted.close()
                assert address == client.getsockname()


@pytest.mark.parametrize(("first", "second"), [(False, False), (True, False), (False, True)])
async def test_port_is_not_shared_by_accident(first: bool, second: bool) -> None:
    with await listen("127.0.0.1", 0, reuse_port=first) as holder:
        port = port_of(holder)
        with pytest.raises(OperatorError) as caught:
            await listen("127.0.0.1", port, reuse_port=second)
        assert str(caught.value) == f"cannot listen on 127.0.0.1:{port}: Address already in use"
