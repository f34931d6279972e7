"""Destinations, signing secrets, API keys, and the node."""

from typing import Final

from primeflowd.api import destinations, health, keys, reload, secrets
from primeflowd.api.openapi_document.operation import (
    PAGE,
    Operation,
    Operations,
    Pages,
    Parameter,
)
from primeflowd.api.services import NodeStatistics
from primeflowd.reload import Reloaded

_DESTINATION: Final = Parameter(
    "destination",
    {
        "type": "string",
        "pattern": r"^https?://[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*(:[1-9][0-9]{0,4})?/?$",
        "examples": ["https://example.com"],
    },
    "which one: scheme, host and port; a port that is the scheme's own may be left out",
    required=True,
)

OPERATIONS: Final[Operations] = {
    destinations.list_page: Operation(
        name="list_destinations",
        summary="List destinations",
        description="Those that have a policy, are disabled, or have failed for a while; newest "
        "first, those of the configuration file last. Destinations are shared by all orgs: this "
        "takes an operator key.",
        query=PAGE,
        answers={200: Pages(destinations.DestinationShape)},
    ),
    destinations.get: Operation(
        name="get_destination",
        summary="Get the policy of a destination",
        description="404 for one that is as any other. It takes an operator key.",
        query=(_DESTINATION,),
        answers={200: destinations.DestinationShape},
        refusals=(404,),
    ),
    destinations.change: Operation(
        name="change_destination",
        summary="Change the policy of a destination",
        description="Or give it one; or disable it, or enable it. What is not named stays as it "
        "is. It holds on this node at once, on others within 5 seconds; attempts under way end as "
        "they began. 422 for what a table of the configuration file says. It takes an operator "
        "key.",
        query=(_DESTINATION,),
        body=destinations.DestinationBody,
        answers={200: destinations.DestinationShape},
        refusals=(422,),
        examples={
            "limits": {"rate": 10, "burst": 20, "concurrency": 4, "timeout": "5s"},
            "headers": {"headers": {"X-Gateway-Token": "t0ken"}},
            "disable": {"disabled_reason": "moves to another host", "while_disabled": "wait"},
            "enable": {"disabled_reason": None},
        },
    ),
    destinations.delete: Operation(
        name="delete_destination",
        summary="Forget the policy of a destination",
        description="It is as any other then, and enabled. It takes an operator key.",
        query=(_DESTINATION,),
        answers={204: None},
        refusals=(404, 422),
    ),
    secrets.create: Operation(
        name="create_secret",
        summary="Create a signing secret",
        description="plain_secret is in this answer and nowhere else. The first of an org is "
        "current at once, later ones when promoted.",
        body=secrets.NewSecretBody,
        needs_body=False,
        answers={201: secrets.NewSecretShape},
        refusals=(422,),
        examples={"labelled": {"label": "since May"}},
    ),
    secrets.list_page: Operation(
        name="list_secrets",
        summary="List signing secrets",
        description="Disabled ones too, newest first.",
        query=PAGE,
        answers={200: Pages(secrets.SecretShape)},
    ),
    secrets.get: Operation(
        name="get_secret",
        summary="Get a signing secret",
        description="Without the secret.",
        answers={200: secrets.SecretShape},
    ),
    secrets.change: Operation(
        name="change_secret",
        summary="Change a signing secret",
        description="Relabels it, or makes it the current one.",
        body=secrets.ChangeBody,
        answers={200: secrets.SecretShape},
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
        answers={200: secrets.PublicKeyShape},
    ),
    keys.create: Operation(
        name="create_key",
        summary="Create an API key",
        description="key is in this answer and nowhere else.",
        body=keys.NewKeyBody,
        needs_body=False,
        answers={201: keys.NewKeyShape},
        examples={"worker": {"scopes": ["batches:write"], "label": "worker"}},
    ),
    keys.list_page: Operation(
        name="list_keys",
        summary="List API keys",
        description="Revoked ones too, newest first.",
        query=PAGE,
        answers={200: Pages(keys.KeyShape)},
    ),
    keys.revoke: Operation(
        name="revoke_key",
        summary="Revoke an API key",
        description="Again is no error. Other nodes may trust it for one more second.",
        answers={204: None},
    ),
    reload.reload: Operation(
        name="reload_configuration",
        summary="Reload the configuration",
        description="This node reads its configuration file anew, as on SIGHUP. The names of the "
        "settings that have changed, and why others take a restart. 422 with the reason if the "
        "file is refused: then nothing has changed. It takes an operator key.",
        answers={200: Reloaded},
        refusals=(422,),
    ),
    health.statistics: Operation(
        name="get_statistics", summary="Get the node's statistics", answers={200: NodeStatistics}
    ),
}
