"""A chat: clients that all talk at once, and all wait until everyone has heard everything.

    python bench/chat.py --clients 32 --batch 200

Each round, every client sends its batch in one go; the next round begins when all have received clients × batch
messages. See bench/README.md for how to read the figures.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from fanout import Tell, repeat
from loadgen import Collector, Progress, notice
from options import ROOM_URL, Parser
from report import Bench, Row, draw_repeats, medians, plot, run, show, tell_disturbed

SAMPLED = 8  # connections whose every byte is kept and compared; a batch of 200 is 650 KB for each, every round
COLUMNS = {  # of the table: the name in the JSON, the title, the format
    "cpu_us_per_delivery": ("CPU µs/delivery", "{:.2f}"),
    "deliveries_per_second": ("deliveries/s", "{:,.0f}"),
    "round_p50_ms": ("round p50 ms", "{:.3f}"),
    "round_p99_ms": ("round p99 ms", "{:.3f}"),
}


class ChatCollector(Collector):
    """Samples fewer connections, and tells how long the rounds took instead of each delivery's latency."""

    def begin(self, label: str, seconds: float) -> None:
        chosen = {i * (len(self.subscribers) - 1) // (SAMPLED - 1) for i in range(SAMPLED)}
        for one in self.subscribers:
            one.sampled = one.index in chosen
        self.rounds_ms: list[float] = []
        super().begin(label, seconds)

    def _latencies_ms(self, order: Sequence[int]) -> list[float]:
        return self.rounds_ms


def rounds(collector: Collector, options: argparse.Namespace, seconds: float) -> list[float]:
    """Everyone sends a batch, in one send each, and all wait until everyone has everything; again and again."""
    assert isinstance(collector, ChatCollector)
    collector.start()
    while (began := collector.now()) < seconds * 1e9:
        batches = [
            b"".join(collector.frame(client, began) for _ in range(options.batch))
            for client in range(options.connections)
        ]
        sent = collector.now()
        for client, frames in enumerate(batches):
            collector.publish(client, frames, options.batch)
        collector.drain()
        collector.rounds_ms.append((collector.now() - sent) / 1e6)
    return []


def one(bench: Bench, number: int, progress: Progress | None = None, tell: Tell = notice) -> Row:
    """One repeat, of a fresh daemon or of the one at --url."""
    row = repeat(bench, "plain", number, publish=rounds, collect=ChatCollector, progress=progress, tell=tell)
    row["round_p50_ms"], row["round_p99_ms"] = row.pop("latency_p50_ms"), row.pop("latency_p99_ms")
    return row


def measure(bench: Bench) -> None:
    """All repeats."""
    options = bench.options
    rows: list[Row] = []
    bench.outcome["repeats"] = rows  # those before a failure are told, too
    rows.extend(one(bench, number) for number in range(options.repeat))
    bench.outcome["median"] = median = medians(rows)
    show("repeat", [*((f"{i}", row) for i, row in enumerate(rows, 1)), ("median", median)], COLUMNS)
    tell_disturbed([*rows, median])

    def draw(figure: Any) -> None:
        shown = ("cpu_us_per_delivery", "deliveries_per_second", "round_p50_ms")
        draw_repeats(figure, {"plain": rows}, COLUMNS, shown)

    plot(options.plot, f"{options.connections} clients, {options.batch} each a round", draw, (10, 3))


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, checked; wrong ones end the program with status 2. Those of fanout.py's `repeat` are among them."""
    parser = Parser("chat.py", "Measure what a chat costs where all talk at once.")
    parser.common(ROOM_URL, deadline="for a repeat (60 more than it should take)")
    parser.whole("--clients", 32, "all of which talk")
    parser.whole("--batch", 1, "messages of each client a round")
    parser.size()
    parser.times(5, 1, 3, least=0)
    options = parser.checked(arguments)
    options.connections = options.publishers = options.clients
    options.deadline = options.deadline or options.warmup + options.seconds + 60
    options.mode = "chat"
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0, or 1 if there is no result or it fails its check."""
    return run("chat.py", parse_options(arguments), measure)


if __name__ == "__main__":
    sys.exit(main())
