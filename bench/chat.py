"""A chat: clients that all talk at once, and all wait until everyone has heard everything.

    python bench/chat.py --clients 32 --batch 200

Each round, every client sends its batch in one go; the next round begins when all have received clients × batch
messages. See bench/README.md for how to read the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from dialects import BenchError
from fanout import Parser, Result, Tell, medians, repeat
from fanout import _number as number
from fanout import _target as target_at
from loadgen import Collector, Progress, notice, pin, raise_file_limit, table, two_cores
from verdict import check_files, pyplot

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


def measure(
    options: argparse.Namespace,
    repetition: int,
    cores: tuple[int, int] | None,
    progress: Progress,
    tell: Tell = notice,
) -> Result:
    """One repeat, of a fresh daemon or of the one at --url."""
    result = repeat(
        options, "plain", repetition, cores, publish=rounds, collect=ChatCollector, progress=progress, tell=tell
    )
    result["round_p50_ms"], result["round_p99_ms"] = result.pop("latency_p50_ms"), result.pop("latency_p99_ms")
    return result


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, checked; wrong ones end the program with status 2. Those of fanout.py's `repeat` are among them."""
    count, seconds = number(int, 1, "a whole number from 1"), number(float, 0.01, "a number from 0.01")
    parser = Parser(prog="chat.py", description="Measure what a chat costs where all talk at once.", allow_abbrev=False)
    add = parser.add_argument
    add("--url", type=target_at, dest="target", metavar="ws://HOST:PORT/PATH", help="a room of a running server")
    add("--pid", type=count, help="the process behind --url: for its CPU time")
    add("--clients", type=count, default=32, metavar="N", dest="connections", help="all of which talk (32)")
    add("--batch", type=count, default=1, metavar="N", help="messages of each client a round (1)")
    add("--size", type=number(int, 31, "a whole number from 31"), default=100, metavar="BYTES", help="of one (100)")
    add("--seconds", type=seconds, default=5, help="to measure (5)")
    add("--warmup", type=number(float, 0, "a number from 0"), default=1, metavar="SECONDS", help="before it (1)")
    add("--repeat", type=count, default=3, metavar="N", help="times, each with a fresh daemon (3)")
    add("--json", type=Path, metavar="FILE", help="write the result there, too")
    add("--plot", type=Path, metavar="FILE", help="draw the repeats there, as SVG (needs matplotlib)")
    add("--no-pin", action="store_true", help="don't pin the daemon to one core and the generator to another")
    options = parser.parse_args(arguments)
    if bool(options.pid) and not options.target:
        parser.error("argument --pid: only with --url")
    if options.pid and not os.path.exists(f"/proc/{options.pid}"):
        parser.error(f"argument --pid: there is no process {options.pid}")
    if options.target and options.pid:
        options.target = replace(options.target, pid=options.pid)
    check_files(parser, options.json, options.plot)
    options.deadline = options.warmup + options.seconds + 60
    options.mode, options.publishers = "chat", options.connections
    return options


def report(rows: Mapping[str, Result]) -> str:
    """The table: a line for each repeat, and the medians."""
    lines = []
    for name, result in rows.items():
        values = ((result[column], form) for column, (_, form) in COLUMNS.items())
        cells = ["-" if value is None else form.format(value) for value, form in values]
        lines.append(["! " * bool(result["disturbed"]) + name, *cells])
    text = table(["repeat", *(title for title, _ in COLUMNS.values())], lines)
    return text + ("\n! disturbed: not a figure to quote" if any(r["disturbed"] for r in rows.values()) else "")


def draw(results: Sequence[Result], title: str, file: Path) -> None:
    """A bar for each repeat: what a delivery cost, and how long a round took."""
    figure, axes = pyplot().subplots(1, 3, figsize=(10, 3), layout="constrained")
    figure.suptitle(title)
    for axis, name in zip(axes, ("cpu_us_per_delivery", "deliveries_per_second", "round_p50_ms"), strict=True):
        axis.bar(range(1, len(results) + 1), [result[name] or 0 for result in results], color="#4060a0")
        axis.set(title=COLUMNS[name][0], xlabel="repeat", xticks=range(1, len(results) + 1))
    figure.savefig(file, format="svg")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0, or 1 if there is no result or it fails its check."""
    options = parse_options(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of stopping the daemon
    results: list[Result] = []
    outcome: dict[str, object] = {"ok": False, "options": {k: str(v) for k, v in vars(options).items()}}
    try:
        raise_file_limit(options.connections + 50)
        cores = None if options.no_pin else two_cores()
        if cores:
            os.sched_setaffinity(0, {cores[1]})
            if options.pid:
                pin(options.pid, cores[0])
        else:
            notice("nothing is pinned")
        for repetition in range(options.repeat):
            progress = Progress(f"chat {repetition + 1}/{options.repeat} ")
            results.append(measure(options, repetition, cores, progress))
        median = medians(results)
        outcome.update(ok=True, median=median)
        print(report({**{f"{i}": result for i, result in enumerate(results, 1)}, "median": median}))
        if options.plot:
            draw(results, f"{options.connections} clients, {options.batch} each a round", options.plot)
    except (BenchError, OSError) as error:
        print(f"chat.py: no result: {error}", file=sys.stderr)
        outcome["error"] = str(error)
    if options.json:
        options.json.write_text(json.dumps({**outcome, "repeats": results}, indent=2) + "\n")
    return 0 if outcome["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
