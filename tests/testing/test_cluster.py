"""What a cluster tells of itself when a test has failed."""

from primeflowd.testing.cluster import story


def test_story_of_several_nodes() -> None:
    lapsed = {"level": "error", "event": "lease_lapsed", "node_id": "one"}
    first: list[dict[str, str]] = [
        {"timestamp": "T1", "level": "info", "event": "daemon_ready", "url": "http://a"},
        {"timestamp": "T2", "level": "info", "event": "old_rows_removed"},
        {"timestamp": "T3", **lapsed},
        {"timestamp": "T5", **lapsed},
        {"event": "text", "text": "Traceback"},
        {"event": "text", "text": "  a line"},
        {"timestamp": "T7", **lapsed},
    ]
    second: list[dict[str, object]] = [
        {"timestamp": "T4", "level": "warning", "event": "lease_not_renewed", "error": "late"},
        {"timestamp": "T6", "level": "info", "event": "claims_recovered", "deliveries": 3},
    ]
    assert story({"node 1": first, "node 2": second}) == [
        "T1 node 1 daemon_ready url=http://a",
        "T3 node 1 lease_lapsed node_id=one (2 times)",
        "T3 node 1 text text=Traceback",
        "T3 node 1 text text=  a line",
        "T4 node 2 lease_not_renewed error=late",
        "T6 node 2 claims_recovered deliveries=3",
        "T7 node 1 lease_lapsed node_id=one",
    ]
