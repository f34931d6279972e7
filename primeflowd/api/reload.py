"""`POST /v1/reload`: have this node read its configuration anew.

It is the operator's business and no org's, so it takes an operator key. Of several nodes, or of
several processes on one port, the one that gets the request reloads.
"""

from typing import Final

from primeflowd.access_keys import ADMIN
from primeflowd.api import idempotency, shapes
from primeflowd.api.answer import Answer
from primeflowd.api.call import Call, Route
from primeflowd.api.errors import Rejected
from primeflowd.errors import OperatorError
from primeflowd.model import OPERATOR_ORG
from primeflowd.reload import Reloaded


async def reload(call: Call) -> Answer:
    """Reload, and say what has changed and what takes a restart; 422 with the reason if not."""
    if call.key.org_id != OPERATOR_ORG:
        raise Rejected(403, "forbidden", "this needs an operator key")

    async def act() -> Reloaded:
        try:
            return await call.services.reload()
        except OperatorError as error:
            raise Rejected(422, "reload_failed", f"{error}; nothing has changed") from error

    return await idempotency.act(call, act, _answer)


def _answer(done: Reloaded) -> Answer:
    return shapes.answer(200, done)


ROUTES: Final = (Route("POST", "/v1/reload", ADMIN, reload, "none"),)
