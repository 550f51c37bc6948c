"""What /metrics shows: counted where it happens, or asked for when somebody looks.

A node has a registry of its own, so that several can run in one process (tests do). Names follow the conventions of
Prometheus: base units, `_total` for what only grows.
"""

from collections.abc import Iterator

import prometheus_client
import trio
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry

from hubbub import __version__
from hubbub.connection.registry import Connections
from hubbub.engines.base import Engine
from hubbub.hub.inbox import Inbox
from hubbub.hub.state import Hub
from hubbub.model.end import End

prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]  # one series less for each counter

CONTENT_TYPE = prometheus_client.CONTENT_TYPE_LATEST


class Metrics:
    """One node's figures."""

    def __init__(self, hub: Hub, inbox: Inbox, engine: Engine, connections: Connections) -> None:
        self.cut_off = 0
        self._registry = CollectorRegistry()
        self._registry.register(_Snapshot(hub, inbox, engine, connections))
        prometheus_client.ProcessCollector(registry=self._registry)
        self._ended = prometheus_client.Counter(
            "hubbub_connections_ended", "Ended WebSocket connections by reason.", ["reason"], registry=self._registry
        )
        self._opened = prometheus_client.Counter(
            "hubbub_connections_opened", "WebSocket connections that got their 101.", registry=self._registry
        )
        self._responses = prometheus_client.Counter(
            "hubbub_http_responses", "HTTP responses by status.", ["status"], registry=self._registry
        )
        self._refusals = prometheus_client.Counter(
            "hubbub_refusals", "Clients turned away, by the limit they met.", ["limit"], registry=self._registry
        )
        self._pauses = prometheus_client.Counter(
            "hubbub_rate_pauses", "Pauses of readers whose peers were over their rates.", registry=self._registry
        )
        self._errors = prometheus_client.Counter(
            "hubbub_internal_errors", "Exceptions that nobody expected.", registry=self._registry
        )
        for end in End:
            self._ended.labels(end.value)  # so that a reason that hasn't occurred shows as 0, not as nothing

    def count_open(self) -> None:
        """Count one opened WebSocket connection."""
        self._opened.inc()
        self.count_response(101)

    def count_end(self, end: End, cut_off: bool) -> None:
        """Count one ended WebSocket connection, and whether it was cut off at a stop: what waited for it is lost."""
        self.cut_off += cut_off
        self._ended.labels(end.value).inc()
        if end is End.INTERNAL_ERROR:
            self._errors.inc()

    def count_response(self, status: int) -> None:
        """Count one HTTP response."""
        self._responses.labels(str(status)).inc()

    def count_refusal(self, limit: str) -> None:
        """Count one client that was turned away."""
        self._refusals.labels(limit).inc()

    def count_pause(self) -> None:
        """Count one pause of one that was over its rates."""
        self._pauses.inc()

    def count_error(self) -> None:
        """Count one exception that nobody expected."""
        self._errors.inc()

    def add(self, collector: Collector) -> None:
        """Show what it collects, too."""
        self._registry.register(collector)

    def text(self) -> bytes:
        """Return everything in the text format of Prometheus."""
        return prometheus_client.generate_latest(self._registry)


class _Snapshot(Collector):
    """What the parts hold at the moment somebody looks."""

    def __init__(self, hub: Hub, inbox: Inbox, engine: Engine, connections: Connections) -> None:
        self._hub = hub
        self._inbox = inbox
        self._engine = engine
        self._connections = connections

    def collect(self) -> Iterator[Metric]:
        hub, inbox, engine = self._hub.statistics(), self._inbox.statistics(), self._engine.statistics()
        queued = [connection.outbox for connection in self._connections if connection.outbox.bytes_queued]
        gauges = [
            ("connections", "Open WebSocket connections.", len(self._connections)),
            ("rooms", "Rooms with subscribers.", hub.rooms),
            ("subscriptions", "Subscriptions: connections times rooms.", hub.subscriptions),
            ("outboxes_queued", "Outboxes in which something waits.", len(queued)),
            ("outboxes_queued_bytes", "What waits in all outboxes.", sum(box.bytes_queued for box in queued)),
            ("inbox_commands", "Commands waiting for the hub.", inbox.commands),
            ("inbox_bytes", "Bytes of commands waiting for the hub.", inbox.bytes),
            ("inbox_readers_waiting", "Connections waiting for room in the hub's inbox.", inbox.readers_waiting),
            ("histories", "Rooms with a history.", engine.histories),
            ("history_publications", "Stored publications.", engine.publications),
            ("history_bytes", "Bytes of stored publications, their own weight estimated.", engine.history_bytes),
            ("idempotency_keys", "Remembered idempotency keys.", hub.idempotency_keys),
            ("tasks", "Trio tasks, a few of Trio's own included.", trio.lowlevel.current_statistics().tasks_living),
        ]
        for name, text, value in gauges:
            yield GaugeMetricFamily(f"hubbub_{name}", text, value)
        yield CounterMetricFamily("hubbub_publications", "Accepted publications.", hub.publications)
        yield CounterMetricFamily("hubbub_deliveries", "Publications offered to subscribers: one each.", hub.deliveries)
        yield CounterMetricFamily("hubbub_gaps", "Rooms whose subscribers were told of a gap.", hub.gaps)
        yield CounterMetricFamily("hubbub_rooms_failed", "Rooms ended by an internal error.", hub.rooms_failed)
        refused = CounterMetricFamily("hubbub_commands_refused", "Commands refused, by reason.", labels=["reason"])
        for refusal, count in hub.refused.items():
            refused.add_metric([refusal.name.lower()], count)
        yield refused
        evicted = CounterMetricFamily("hubbub_histories_evicted", "Histories that made way.", labels=["limit"])
        for limit, count in engine.evicted.items():
            evicted.add_metric([limit], count)
        yield evicted
        info = GaugeMetricFamily("hubbub_build_info", "Always 1; its label tells the version.", labels=["version"])
        info.add_metric([__version__], 1)
        yield info
