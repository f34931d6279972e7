"""What the parts of the conformance suite share."""

from contextlib import AbstractAsyncContextManager
from typing import ClassVar

import pytest

from primeflowd.hookspecs import Storage, Tx
from primeflowd.model import (
    ApiKey,
    Attempt,
    Batch,
    Delivery,
    Item,
    Recovery,
    RetryPolicy,
    SigningSecret,
    StoredAnswer,
)

NODE = "node-1"
OTHER_NODE = "node-2"

Value = Batch | Item | Delivery | RetryPolicy | SigningSecret | ApiKey | StoredAnswer | Recovery


class Conformance:
    """What a subclass says of its storage.

    Attributes:
        durable: whether what is stored is there again after the storage was closed.
    """

    pytestmark = pytest.mark.trio

    durable: ClassVar[bool] = True

    def open(self) -> AbstractAsyncContextManager[Storage]:
        """The storage under test: an empty one for each test, the same one within a test."""
        raise NotImplementedError


def put(tx: Tx, *values: Value) -> None:
    """Store values, each as what it is."""
    for value in values:
        match value:
            case Batch():
                tx.insert_batch(value)
            case Item():
                tx.put_items([value])
            case Delivery():
                tx.insert_delivery(value)
            case RetryPolicy():
                tx.put_policy(value)
            case SigningSecret():
                tx.put_secret(value)
            case ApiKey():
                tx.put_key(value)
            case StoredAnswer():
                tx.put_answer(value)
            case Recovery():
                tx.put_recovery(value)


async def store(storage: Storage, *values: Value) -> None:
    """As put(), in a transaction of its own."""
    await storage.write(lambda tx: put(tx, *values))


async def delivery_of(storage: Storage, delivery_id: str) -> Delivery:
    found = await storage.read(lambda tx: tx.delivery(None, delivery_id))
    assert found is not None
    return found


async def attempts_of(storage: Storage, delivery_id: str) -> list[Attempt]:
    found = await storage.read(lambda tx: tx.attempts([delivery_id]))
    return found.get(delivery_id, [])
