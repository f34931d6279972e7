"""Retry policies, batches and their items."""

from typing import Final

from primeflowd.api import batches, items, policies, shapes
from primeflowd.api.openapi_document.body_rules import PLAN as PLAN_RULE
from primeflowd.api.openapi_document.operation import (
    CREATED,
    ITEMS_PAGE,
    PAGE,
    PLAN,
    Array,
    Operation,
    Operations,
    Pages,
    Parameter,
    Results,
    one_of,
)
from primeflowd.model import BatchStatus

_ENDED: Final = {
    "callback_url": "https://example.com/hook",
    "status": "succeeded",
    "output": {"rows": 3},
    "metadata": {"order": 4711},
}

OPERATIONS: Final[Operations] = {
    policies.put: Operation(
        name="put_retry_policy",
        summary="Set a retry policy",
        description="Creates the policy of a plan, or replaces it; without plan_id that of all "
        "plans which have none of their own. Deliveries that exist keep the policy that "
        "they were made under.",
        body=policies.PolicyBody,
        answers={200: policies.PolicyShape},
        examples={
            "plan": {"plan_id": "gold", "delays": ["15m", "1h", "24h"], "max_retries": 3},
            "org": {"delays": ["30s", "1.5h", "1d12h"], "max_retries": 10},
        },
    ),
    policies.get: Operation(
        name="get_retry_policy",
        summary="Get a retry policy",
        description="The policy of exactly this plan; there is no fallback.",
        query=(PLAN,),
        answers={200: policies.PolicyShape},
        refusals=(404,),
    ),
    policies.delete: Operation(
        name="delete_retry_policy",
        summary="Delete a retry policy",
        description="Deliveries that were made under it keep their copy.",
        query=(PLAN,),
        answers={204: None},
        refusals=(404,),
    ),
    policies.list_all: Operation(
        name="list_retry_policies",
        summary="List retry policies",
        description="All of the org, in one array.",
        answers={200: Array(policies.PolicyShape)},
    ),
    policies.effective: Operation(
        name="get_effective_retry_policy",
        summary="Get the policy that counts",
        description="What a delivery made now would get, and where that comes from: the plan, the "
        "org, or the configuration of the daemon.",
        query=(PLAN,),
        answers={200: shapes.EffectivePolicyShape},
    ),
    batches.create: Operation(
        name="register_batch",
        summary="Register a batch",
        description="One with a terminal status is born ended, and its callback is on its way with "
        "it.",
        body=batches.BatchBody,
        answers={201: shapes.BatchShape},
        refusals=(422,),
        examples={
            "queued": {
                "plan_id": "gold",
                "callback_url": "https://example.com/hook",
                "items": [{"client_ref": "row-1", "input": {"page": 1}}, {"client_ref": "row-2"}],
            },
            "ended": _ENDED,
        },
    ),
    batches.create_bulk: Operation(
        name="register_batches",
        summary="Register many batches",
        description="Up to 1000 in one transaction. Each stands alone; those that were accepted "
        "are durable when the answer comes.",
        body=batches.BulkBody,
        answers={200: Results((batches.Accepted, batches.NotAccepted))},
        examples={"two": {"batches": [_ENDED, {"plan_id": "gold", "items_total": 100}]}},
    ),
    batches.list_page: Operation(
        name="list_batches",
        summary="List batches",
        description="Newest first.",
        query=(
            one_of("status_code", BatchStatus, "only in this state"),
            Parameter("plan_id", {"type": "string", **PLAN_RULE}, "only of this plan"),
            *CREATED,
            *PAGE,
        ),
        answers={200: Pages(shapes.BatchShape)},
    ),
    batches.get: Operation(
        name="get_batch", summary="Get a batch", answers={200: shapes.BatchShape}
    ),
    batches.end: Operation(
        name="complete_batch",
        summary="End a batch",
        description="Its callback is frozen and on its way in the same transaction. 200 where it "
        "had ended with that status already, 422 where it had with another.",
        body=batches.CompletionBody,
        answers={201: shapes.BatchShape, 200: shapes.BatchShape},
        refusals=(422,),
        examples={"succeeded": {"status": "succeeded", "output": {"rows": 3}}},
    ),
    batches.cancel: Operation(
        name="cancel_batch",
        summary="Cancel a batch",
        description="200 and unchanged where it had ended, however it did.",
        body=batches.CancellationBody,
        needs_body=False,
        answers={201: shapes.BatchShape, 200: shapes.BatchShape},
        examples={"reason": {"reason": "the customer withdrew it"}},
    ),
    items.list_page: Operation(
        name="list_items",
        summary="List a batch's items",
        description="In the order of their index.",
        query=ITEMS_PAGE,
        answers={200: Pages(shapes.ItemShape)},
    ),
    items.report: Operation(
        name="report_items",
        summary="Report items",
        description="What became of some of the items of a batch: all of the reports are taken or "
        "none. The last item ends the batch.",
        body=items.ReportsBody,
        answers={200: shapes.BatchShape},
        refusals=(422,),
        examples={
            "two": {
                "items": [
                    {"sequence_index": 0, "status_code": "succeeded", "output": {"words": 250}},
                    {"client_ref": "row-2", "status_code": "failed", "error": {"code": "blank"}},
                ]
            }
        },
    ),
}
