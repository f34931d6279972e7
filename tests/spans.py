"""Spans that go nowhere."""

from primeflowd.tracing import Span


class Sink:
    """A tracing.Sink that keeps what it is given."""

    def __init__(self) -> None:
        self.spans: list[Span] = []

    def take(self, span: Span) -> None:
        self.spans.append(span)
