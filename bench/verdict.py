"""What compare.py says: the figures, their ratios, the goals, where hubbub is behind, and the plot."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import report
from loadgen import table


class Row(NamedTuple):
    """One line of work, and the one figure of it that is compared; less is better."""

    measurement: str
    figure: str  # its name in a result
    form: str
    unit: str


def _cpu(measurement: str) -> Row:
    return Row(measurement, "cpu_us_per_delivery", "{:.2f}", "server CPU µs per delivery")


CPU_ROWS = ("r100", "r1000", "c1_100", "c1_1000", "s100", "s1000", "chat32", "bun32")
SINGLE_ROWS = CPU_ROWS[:4]  # where each delivery is a send of its own
LOG_ROWS = CPU_ROWS[4:]  # of the plot: where a send a delivery costs tens of times what one for all does
ROWS = {
    **{name: _cpu(name) for name in CPU_ROWS},
    "p50": Row("r1000", "latency_p50_ms", "{:.2f}", "ms"),
    "p99": Row("r1000", "latency_p99_ms", "{:.2f}", "ms"),
    "idle": Row("open", "memory_kb_per_connection", "{:.1f}", "KB per connection"),
    "handshake": Row("open", "cpu_us_per_handshake", "{:.0f}", "server CPU µs each"),
}


class Figure(NamedTuple):
    """The rounds' median, least and most."""

    median: float
    least: float
    most: float
    disturbed: bool  # in half the rounds


@dataclass
class Outcome:
    """All that was measured."""

    titles: dict[str, str]  # of the contestants, by name
    rows: Sequence[str]
    missing: Mapping[str, str]  # title: why it couldn't take part
    results: dict[tuple[str, str], list[report.Row]] = field(default_factory=dict)  # by contestant and measurement
    faults: dict[tuple[str, str], str] = field(default_factory=dict)  # disqualified there, as this went wrong
    notes: list[str] = field(default_factory=list)  # what disturbed, and where

    def figure(self, contestant: str, row: str) -> Figure | None:
        """None if it didn't take part there, or is disqualified."""
        key = (contestant, ROWS[row].measurement)
        results = [] if key in self.faults else self.results.get(key, [])
        values = [value for result in results if (value := result.get(ROWS[row].figure)) is not None]
        if not values:
            return None
        busy = row != "idle"  # who waits for a core doesn't grow by it
        disturbed = busy and statistics.median(bool(result["disturbed"]) for result in results) >= 0.5
        return Figure(statistics.median(values), min(values), max(values), disturbed)

    def disturbed(self) -> int:
        """How many single measurements were, of all contestants and rounds."""
        return sum(bool(result["disturbed"]) for results in self.results.values() for result in results)


class Goal(NamedTuple):
    """A goal of bench/README.md. A limit is the most hubbub's figure may be (times the other's, if there is one)."""

    rows: Sequence[str]
    owed: float
    aim: float | None = None
    against: str | None = None
    cheaper: bool = False  # then a limit is how many times the other's figure is hubbub's, at least
    who: str = "hubbub"


GOALS = (
    Goal(("r1000", "c1_1000"), 1.15, 1.0, "bun"),
    Goal(("r100", "c1_100"), 1.3, 1.15, "bun"),
    Goal(("s100", "s1000"), 0.8, 0.6, "bun"),
    Goal(("chat32",), 1.0, 0.8, "bun"),
    Goal(("bun32",), 0.35, 0.25, "bun"),
    Goal(SINGLE_ROWS, 1.6, 1.3, "floor"),
    Goal(CPU_ROWS, 2, None, "websockets", cheaper=True),
    Goal(CPU_ROWS, 5, None, "trio", cheaper=True),
    Goal(("idle",), 18, 14),
    Goal(("idle",), 22, 17, who="structured"),
    Goal(("handshake",), 1.2, 0.8, "trio"),
)
REFERENCES = ("bun", "floor", "websockets", "trio")


def figures(outcome: Outcome) -> str:
    """Of each contestant the medians, and below them least and most."""
    rows = [row for row in ROWS if row in outcome.rows]
    halves = [[row for row in rows if row in CPU_ROWS], [row for row in rows if row not in CPU_ROWS]]
    return "\n\n".join(_figures(outcome, half) for half in halves if half)


def _figures(outcome: Outcome, rows: Sequence[str]) -> str:
    lines = []
    for contestant, title in outcome.titles.items():
        medians, spreads = [title], [""]
        for row in rows:
            figure, form = outcome.figure(contestant, row), ROWS[row].form
            out = (contestant, ROWS[row].measurement) in outcome.faults
            medians.append(
                "out" if out else "-" if not figure else "! " * figure.disturbed + form.format(figure.median)
            )
            spreads.append(f"{form}–{form}".format(figure.least, figure.most) if figure else "")
        lines += [medians, spreads]
    units = dict.fromkeys(ROWS[row].unit for row in rows)
    told = "; ".join(f"{', '.join(row for row in rows if ROWS[row].unit == unit)}: {unit}" for unit in units)
    return f"{told}\n{table(['', *rows], lines)}"


def ratios(outcome: Outcome) -> str:
    """Hubbub's medians as multiples of the others': below 1, hubbub is cheaper."""
    lines = []
    for name in (name for name in REFERENCES if name in outcome.titles):
        cells = [_quotient(outcome, row, name) for row in outcome.rows]
        lines.append([f"hubbub / {outcome.titles[name]}", *("-" if q is None else f"{q:.2f}" for q in cells)])
    return table(["ratio of medians", *outcome.rows], lines)


def _quotient(outcome: Outcome, row: str, against: str, who: str = "hubbub") -> float | None:
    mine, other = outcome.figure(who, row), outcome.figure(against, row)
    return mine.median / other.median if mine and other and other.median > 0 else None


def judge(outcome: Outcome) -> list[dict[str, Any]]:
    """Each goal in each of its rows: the figure, what is owed and aimed at, and whether it is met."""
    judged = []
    for goal in GOALS:
        for row in (row for row in goal.rows if row in outcome.rows):
            mine = outcome.figure(goal.who, row)
            value = _quotient(outcome, row, goal.against, goal.who) if goal.against else mine and mine.median
            value = 1 / value if value and goal.cheaper else value
            verdict = "no figure" if value is None else "MISSED"
            for limit, met in ((goal.owed, "met"), (goal.aim, "met, and the aim")):
                if value is not None and limit is not None and (value >= limit if goal.cheaper else value <= limit):
                    verdict = met
            who = {"hubbub": "", "structured": ", structured"}[goal.who]
            other = f" to {outcome.titles.get(goal.against, goal.against)}" if goal.against else ""
            judged.append(
                {"goal": row + who + other, "figure": value, "owed": goal.owed, "aim": goal.aim, "verdict": verdict}
                | {"sign": "≥" if goal.cheaper else "≤", "unit": "×" if goal.against else " KB"}
            )
    return judged


def goals(judged: Sequence[Mapping[str, Any]]) -> str:
    """The goals' table."""
    lines = []
    for one in judged:
        sign, unit = one["sign"], one["unit"]
        figure = "-" if one["figure"] is None else f"{one['figure']:.2f}{unit}"
        aim = "" if one["aim"] is None else f"{sign} {one['aim']:g}{unit}"
        lines.append([one["goal"], figure, f"{sign} {one['owed']:g}{unit}", aim, one["verdict"]])
    return table(["goal", "figure", "owed", "aim", ""], lines)


def sentences(outcome: Outcome) -> Iterator[str]:
    """Who is missing, who is disqualified and why, and where hubbub is behind."""
    for title, reason in outcome.missing.items():
        yield f"Left out: {title}: {reason}"
    for (contestant, measurement), fault in outcome.faults.items():
        yield f"Disqualified: {outcome.titles[contestant]} in {measurement}: " + fault.replace("\n", "; ")
    if disturbed := outcome.disturbed():
        figures = [outcome.figure(contestant, row) for contestant in outcome.titles for row in outcome.rows]
        if any(figure and figure.disturbed for figure in figures):
            yield "! disturbed in half the rounds: not a figure to quote"
        total = sum(map(len, outcome.results.values()))
        yield f"Disturbed: {disturbed} of {total} single measurements (by what: --json)"
    for row in outcome.rows:
        mine, form = outcome.figure("hubbub", row), ROWS[row].form
        for contestant, title in outcome.titles.items():
            other = outcome.figure(contestant, row)
            if mine and other and other.median < mine.median and contestant != "structured":
                ratio = f"{mine.median / other.median:.2f}×" if other.median > 0 else "-"
                overlap = ", the spreads overlap" if other.most >= mine.least else ""
                both = f"{title} {form}, hubbub {form}".format(other.median, mine.median)
                yield f"Behind: {row}: {both} ({ratio}{overlap})"


# The picture.


def draw(outcome: Outcome, file: str | None) -> None:
    """Of each row a panel, of each contestant a bar: the median, with least and most."""
    columns = min(4, len(outcome.rows))
    lines = -(-len(outcome.rows) // columns)
    names = list(outcome.titles)[::-1]

    def panels(figure: Any) -> None:
        axes = figure.subplots(lines, columns, sharey=True, squeeze=False)
        for axis in axes.flat[len(outcome.rows) :]:
            axis.set_visible(False)
        for axis, row in zip(axes.flat, outcome.rows, strict=False):
            _panel(axis, outcome, row, names)

    size = (3.2 * columns + 1, (0.26 * len(outcome.titles) + 0.9) * lines)
    report.plot(file, "hubbub beside its rivals", panels, size)


def _panel(axis: Any, outcome: Outcome, row: str, names: Sequence[str]) -> None:
    for place, name in enumerate(names):
        if value := outcome.figure(name, row):
            spread = [[value.median - value.least], [value.most - value.median]]
            colour = "#c04020" if name in ("hubbub", "structured") else "#8090a8"
            if row in LOG_ROWS:  # where a bar would begin anywhere
                axis.errorbar(value.median, place, xerr=spread, fmt="o", color=colour)
            else:
                axis.barh(place, value.median, xerr=spread, color=colour, error_kw={"linewidth": 0.8})
    axis.set_yticks(range(len(names)), [outcome.titles[name] for name in names])
    axis.set_title(f"{row}: {ROWS[row].unit}", fontsize=9)
    axis.tick_params(labelsize=8)
    if row in LOG_ROWS:
        axis.set_xscale("log")
