"""Signing secrets, API keys, and the node."""

from typing import Final

from primeflowd.api import health, keys, secrets, shapes
from primeflowd.api.openapi_document.operation import (
    PAGE,
    Operation,
    Operations,
    Pages,
)
from primeflowd.api.services import NodeStatistics

OPERATIONS: Final[Operations] = {
    secrets.create: Operation(
        name="create_secret",
        summary="Create a signing secret",
        description="plain_secret is in this answer and nowhere else. The first of an org is "
        "current at once, later ones when promoted.",
        body=secrets.NewSecretBody,
        needs_body=False,
        answers={201: shapes.NewSecretShape},
        refusals=(422,),
        examples={"labelled": {"label": "since May"}},
    ),
    secrets.list_page: Operation(
        name="list_secrets",
        summary="List signing secrets",
        description="Disabled ones too, newest first.",
        query=PAGE,
        answers={200: Pages(shapes.SecretShape)},
    ),
    secrets.get: Operation(
        name="get_secret",
        summary="Get a signing secret",
        description="Without the secret.",
        answers={200: shapes.SecretShape},
    ),
    secrets.change: Operation(
        name="change_secret",
        summary="Change a signing secret",
        description="Relabels it, or makes it the current one.",
        body=secrets.ChangeBody,
        answers={200: shapes.SecretShape},
        refusals=(422,),
        examples={"promote": {"is_current": True}, "relabel": {"label": "until June"}},
    ),
    secrets.disable: Operation(
        name="disable_secret",
        summary="Disable a signing secret",
        description="Nothing is signed with it any more, for good; it can still be read. 422 for "
        "the current one while another is enabled.",
        answers={204: None},
        refusals=(422,),
    ),
    secrets.get_public_key: Operation(
        name="get_public_key",
        summary="Get a public key",
        description="The Ed25519 key for receivers that verify v1a signatures.",
        answers={200: shapes.PublicKeyShape},
    ),
    keys.create: Operation(
        name="create_key",
        summary="Create an API key",
        description="key is in this answer and nowhere else.",
        body=keys.NewKeyBody,
        needs_body=False,
        answers={201: shapes.NewKeyShape},
        examples={"worker": {"scopes": ["batches:write"], "label": "worker"}},
    ),
    keys.list_page: Operation(
        name="list_keys",
        summary="List API keys",
        description="Revoked ones too, newest first.",
        query=PAGE,
        answers={200: Pages(shapes.KeyShape)},
    ),
    keys.revoke: Operation(
        name="revoke_key",
        summary="Revoke an API key",
        description="Again is no error. Other nodes may trust it for one more second.",
        answers={204: None},
    ),
    health.statistics: Operation(
        name="get_statistics", summary="Get the node's statistics", answers={200: NodeStatistics}
    ),
}
