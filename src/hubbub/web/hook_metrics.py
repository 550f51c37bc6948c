"""What /metrics shows of the event hooks."""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from hubbub.hooks.hooks import Hooks


class HookSnapshot(Collector):
    """What hooks hold at the moment somebody looks."""

    def __init__(self, hooks: Hooks) -> None:
        self._hooks = hooks

    def collect(self) -> Iterator[Metric]:
        """Return all of it."""
        questions, notices = self._hooks.questions, self._hooks.notices
        for name, text, value in (
            ("questions_waiting", "Questions that are still to be sent to the back end.", questions.waiting),
            ("questions_under_way", "Questions that the back end hasn't answered yet.", questions.under_way),
            ("notices_waiting", "Notices that the back end hasn't been told.", len(notices.queue)),
            ("notices_waiting_bytes", "What they weigh.", notices.queue.weight),
        ):
            yield GaugeMetricFamily(f"hubbub_hook_{name}", text, value)
        for name, text, value in (
            ("notices", "Notices that the back end has taken.", notices.queue.told),
            ("notices_lost", "Notices that were dropped or given up.", notices.queue.lost),
            ("deliveries_failed", "Deliveries of notices that weren't taken.", notices.failed),
        ):
            yield CounterMetricFamily(f"hubbub_hook_{name}", text, value)
        asked = CounterMetricFamily(
            "hubbub_hook_questions", "Questions, by what came of it.", labels=["hook", "outcome"]
        )
        for labels, count in questions.outcomes.items():
            asked.add_metric(labels, count)
        yield asked
