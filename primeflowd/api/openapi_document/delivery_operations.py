"""Deliveries, a batch's too, and recoveries."""

from typing import Final

from primeflowd.api import deliveries, explain, queue_shape, recoveries, shapes
from primeflowd.api.openapi_document.body_rules import URL
from primeflowd.api.openapi_document.operation import (
    CREATED,
    PAGE,
    Array,
    Operation,
    Operations,
    Pages,
    Parameter,
    one_of,
)
from primeflowd.model import DeliveryStatus, FailureReason

OPERATIONS: Final[Operations] = {
    deliveries.history: Operation(
        name="list_callbacks",
        summary="List a batch's callbacks",
        description="All its deliveries, newest first, with their attempts, in one array.",
        answers={200: Array(shapes.DeliveryShape)},
    ),
    deliveries.redeliver_batch: Operation(
        name="redeliver_batch",
        summary="Redeliver a batch's callback",
        description="The same bytes again, as a delivery of its own. The batch has ended, has a "
        "callback_url, and none of its deliveries is in flight; else 422.",
        answers={201: shapes.DeliveryShape},
        refusals=(422,),
    ),
    deliveries.list_page: Operation(
        name="list_deliveries",
        summary="List deliveries",
        description="Newest first, with their attempts.",
        query=(
            one_of("status_code", DeliveryStatus, "only in this state"),
            Parameter(
                "batch_id", {"type": "string"}, "only of the batch with this id; else none match"
            ),
            one_of("failure_reason_code", FailureReason, "only those that failed for this"),
            Parameter(
                "destination",
                {"type": "string", **URL},
                "only what goes there: scheme, host and port, as https://example.com:443",
            ),
            *CREATED,
            *PAGE,
        ),
        answers={200: Pages(shapes.DeliveryShape)},
    ),
    deliveries.get: Operation(
        name="get_delivery", summary="Get a delivery", answers={200: shapes.DeliveryShape}
    ),
    deliveries.cancel: Operation(
        name="cancel_delivery",
        summary="Cancel a delivery",
        description="It ends as failed, for the reason cancelled. 422 where it has ended.",
        answers={201: shapes.DeliveryShape},
        refusals=(422,),
    ),
    deliveries.hasten: Operation(
        name="attempt_delivery_now",
        summary="Attempt a delivery now",
        description="A retry that waits is due at once. 422 where the delivery has ended.",
        answers={202: shapes.DeliveryShape},
        refusals=(422,),
    ),
    explain.get: Operation(
        name="explain_delivery",
        summary="Explain a delivery",
        description="Why it is where it is: its policy and schedule, what holds it back, and what "
        "would make it go.",
        answers={200: explain.ExplanationShape},
    ),
    queue_shape.get: Operation(
        name="get_queue_shape",
        summary="Count what waits",
        description="Deliveries by destination and by how long they have been due; limit "
        "destinations are named, those with most. An operator key that names no org is "
        "shown all orgs together.",
        query=(PAGE[0],),
        answers={200: queue_shape.QueueShape},
        may_name_org=True,
    ),
    recoveries.start: Operation(
        name="recover_deliveries",
        summary="Recover failed deliveries",
        description="Redelivers every delivery that failed of those made in a stretch of time, "
        "paced, in the background.",
        body=recoveries.RecoverBody,
        answers={202: recoveries.RecoveryStartedShape},
        leads_to=("get_recovery", "recovery_id"),
        examples={
            "outage": {
                "since": "2026-05-06T10:00:00Z",
                "until": "2026-05-06T12:30:00+02:00",
                "destination": "https://example.com",
                "failure_reason_code": "connection_error",
            }
        },
    ),
    recoveries.get: Operation(
        name="get_recovery",
        summary="Get a recovery",
        description="How far a bulk redelivery is.",
        answers={200: recoveries.RecoveryShape},
    ),
}
