"""Soak: a mixed load for a long time, with clients that come and go; memory and descriptors must stay flat.

    python bench/soak.py --seconds 600 --plot soak.svg

See bench/README.md.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import itertools
import sys
from collections import deque
from collections.abc import Sequence
from typing import Any

from client import Client, State
from crowd import Crowd
from dialects import BenchError
from loadgen import notice, percentile, table
from options import SERVER_URL, Parser
from probe import Probe, growth, metrics
from report import Bench, plot, run
from room import Room

WAYS = ("close", "eof", "reset")  # of leaving
PATIENCE = 10  # seconds for what a server under load may take its time
JUDGED = {"memory_mb": "memory", "descriptors": "descriptors"}
SHOWN = {
    "memory_mb": ("memory MB", "{:.1f}"),
    "descriptors": ("descriptors", "{:.0f}"),
    "tasks": ("tasks", "{:.0f}"),
    "subscriptions": ("subscriptions", "{:.0f}"),
    "cpu_ms": ("CPU ms a second", "{:.0f}"),
    "p99_ms": ("p99 ms", "{:.2f}"),
}
Sample = dict[str, float]


class Soak:
    """The load: stayers in rooms, publications at times fixed beforehand, and those who come and go."""

    def __init__(self, crowd: Crowd, options: argparse.Namespace, rooms: Sequence[Room]) -> None:
        self.crowd, self.options, self.rooms = crowd, options, rooms
        # Both dialects in every room: the first time round the rooms plain, the second structured, and so on.
        self.stayers = [
            Client(crowd, f"stayer {i}", self.rooms[i % options.rooms], structured=i // options.rooms % 2 == 1)
            for i in range(options.connections)
        ]
        self._speakers = itertools.cycle(self.stayers)
        self._ways = itertools.cycle(WAYS)
        self._guests: deque[Client] = deque()
        self._published = self.churned = 0

    def step(self, now: float) -> None:
        """Do what is due, so many seconds after the beginning."""
        rate, churn = self.options.rate, self.options.churn
        while self._published / rate <= now:
            speaker = next(self._speakers)
            assert speaker.room
            self.crowd.publish(speaker, speaker.room, at=int(self._published / rate * 1e9))
            self._published += 1
        while churn and self.churned / churn <= now:
            room = self.rooms[self.churned % len(self.rooms)]
            structured = self.churned // len(self.rooms) % 2 == 1
            guest = Client(self.crowd, f"guest {self.churned}", room, structured=structured, stays=False)
            self.crowd.start(guest)
            self._guests.append(guest)
            self.churned += 1
        while self._guests and (age := now - (self._guests[0].number - len(self.stayers)) / churn) >= self.options.stay:
            if self._guests[0].state is State.OPEN:
                self._guests.popleft().leave(next(self._ways))
            elif age > self.options.stay + PATIENCE:
                raise BenchError(f"{self._guests[0].name} isn't in its room {age:.0f} s after it came")
            else:
                break

    def dismiss(self) -> None:
        """Let those who are still there go."""
        while self._guests:
            self.crowd.until(lambda: self._guests[0].state is not State.CONNECTING)
            self._guests.popleft().leave(next(self._ways))


def soak(bench: Bench) -> list[Sample]:
    """A sample for each second; raises if a delivery is lost or out of order, or somebody stays who has left."""
    options = bench.options
    samples: list[Sample] = []
    bench.outcome["samples"] = samples  # those before a failure are told, too
    with contextlib.ExitStack() as stack:
        most = options.connections + int(options.churn * (options.stay + 10))
        bench.needs(most, "nobody else who comes or goes meanwhile")
        settings = {"HUBBUB_PING_SECONDS": "25"}  # as it is by default
        crowd = stack.enter_context(Crowd.gather(bench, "soak", most, settings, size=options.size))
        others = int(metrics(crowd.target)["hubbub_connections"])  # none, but at --url
        load = Soak(crowd, options, [Room(bench.room(f"soak-{i}")) for i in range(options.rooms)])
        crowd.open(load.stayers)
        probe = stack.enter_context(Probe(crowd.target))
        gc.collect()
        gc.freeze()  # the generator's own collections would be pauses
        stack.callback(gc.unfreeze)
        _loop(crowd, load, probe, samples, options)
        load.dismiss()
        crowd.check(settle=0.5)
        bench.outcome.update(publications=crowd.published, deliveries=crowd.received, churned=load.churned)
        _nobody_left_behind(crowd, probe, options.connections, others)
    return samples


def _loop(crowd: Crowd, load: Soak, probe: Probe, samples: list[Sample], options: argparse.Namespace) -> None:
    crowd.latencies, next_sample, received = [], 1.0, 0
    crowd.reset_clock()
    probe.ask()
    while (now := crowd.now() / 1e9) < options.seconds:
        load.step(now)
        crowd.poll("soaking", now / options.seconds)
        probe.poll()
        if now >= next_sample:
            next_sample += 1
            latencies, crowd.latencies = sorted(crowd.latencies), []
            shares = (("p50_ms", 0.5), ("p99_ms", 0.99)) if latencies else ()  # nothing may come for a second
            worst = {name: percentile(latencies, share) for name, share in shares}
            deliveries, received = crowd.received - received, crowd.received
            samples.append({"at": now, "deliveries": deliveries} | worst | probe.sample())
            probe.ask()
    crowd.latencies = None


def _nobody_left_behind(crowd: Crowd, probe: Probe, stayers: int, others: int) -> None:
    """All who have left must soon be gone from the server, and nobody else.

    Patience begins anew whenever another connection has ended: an overloaded server has a queue to work through.
    """
    probe.metrics = {}
    left, until = len(crowd.clients), crowd.now() + PATIENCE * 1e9
    while len(crowd.clients) != stayers or probe.metrics.get("hubbub_connections") != stayers + others:
        if len(crowd.clients) != left:
            left, until = len(crowd.clients), crowd.now() + PATIENCE * 1e9
        if crowd.now() > until:
            there = f"{probe.metrics.get('hubbub_connections')} connections at the server, {left} here"
            besides = f", and {others} others were there before" if others else ""
            raise BenchError(f"{there}, though all but {stayers} left {PATIENCE} s ago{besides}")
        probe.ask()
        crowd.wait(0.2, "counting")
        probe.poll()


def judge(samples: Sequence[Sample], growth_max: float) -> dict[str, float]:
    """The growth of each known column after the first fifth; raises if memory or descriptors have grown too much."""
    judged = [sample for sample in samples if sample["at"] >= samples[-1]["at"] / 5]
    found: dict[str, float] = {}
    for column in SHOWN:
        pairs = [(sample["at"], sample[column]) for sample in judged if column in sample]
        if pairs:
            found[column] = growth([at for at, _ in pairs], [value for _, value in pairs])
    grown = [f"{JUDGED[name]} by {found[name]:.1%}" for name in JUDGED if found.get(name, 0) > growth_max / 100]
    if grown:
        raise BenchError(f"not flat: after the first fifth of the time grew {' and '.join(grown)}")
    return found


def measure(bench: Bench) -> None:
    """Soak, tell, draw, and only then judge: who must see why it failed sees it."""
    options = bench.options
    samples = soak(bench)
    if len(samples) < 5:
        raise BenchError("too short to tell anything")
    forms = ("at_start", "a_fifth", "half", "at_end")
    chosen = [samples[0], samples[len(samples) // 5], samples[len(samples) // 2], samples[-1]]
    slopes = judge(samples, float("inf"))
    lines = [
        [
            title,
            *(form.format(sample[name]) if name in sample else "-" for sample in chosen),
            f"{slopes[name]:+.1%}" if name in slopes else "-",
        ]
        for name, (title, form) in SHOWN.items()
    ]
    print(table(["", *(name.replace("_", " ") for name in forms), "growth after a fifth"], lines))
    done = bench.outcome
    print(f"{done['publications']:,} publications, {done['deliveries']:,} deliveries to those who stay: complete,")
    print(f"in one order a room; {done['churned']:,} came and went")
    bench.outcome["growth"] = slopes
    if not set(JUDGED) <= set(slopes):
        notice("whether memory and descriptors are flat isn't known: --pid says whose they are")

    def draw(figure: Any) -> None:
        panels = (("memory_mb",), ("descriptors", "tasks", "subscriptions"), ("cpu_ms",), ("p50_ms", "p99_ms"))
        for axes, columns in zip(figure.subplots(2, 2, sharex=True).flat, panels, strict=True):
            for column in columns:
                points = [(sample["at"], sample[column]) for sample in samples if column in sample]
                if points:
                    axes.plot(*zip(*points, strict=True), label=column, linewidth=0.8)
                    axes.legend()
            axes.set(ylim=(0, None), xlabel="seconds")

    title = f"{options.connections} stay, {options.churn:g}/s come and go, {options.rate:g} publications/s"
    plot(options.plot, title, draw, (10, 6))
    judge(samples, options.growth_max)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0, or 1 if there is no result, it fails its check, or something isn't flat."""
    parser = Parser("soak.py", "Load a server for a long time, while clients come and go.")
    parser.common(SERVER_URL, deadline="beyond --seconds (600)")
    parser.real("--seconds", 600, "how long")
    parser.whole("--connections", 300, "that stay, half of them structured")
    parser.whole("--rooms", 10, "rooms")
    parser.real("--rate", 50, "publications a second, in all rooms together", metavar="N")
    parser.whole("--churn", 50, "connections that come, and go, a second", least=0, metavar="R")
    parser.real("--stay", 2, "how long each of these stays")
    parser.size()
    flat = "of memory and descriptors after the first fifth, still called flat"
    parser.real("--growth-max", 3, flat, metavar="PERCENT")
    options = parser.checked(arguments)
    options.deadline = options.seconds + (options.deadline or 600)
    return run("soak.py", options, measure)


if __name__ == "__main__":
    sys.exit(main())
