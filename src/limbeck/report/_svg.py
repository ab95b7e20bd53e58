"""The small geometry of charts: elements, scales with round ticks, marks that differ in shape, labels that keep clear of one another."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

CHAR = 7.4
"""The width of one character of a chart's text, about, in the chart's units; the text is 12 high."""


def element(tag: str, *children: str, **attributes: object) -> Markup:
    """One SVG element, everything escaped; `class_` is `class`, `text_anchor` is `text-anchor`, numbers have two decimals, None is left out.

    >>> element("text", "a<b", x=1.0, class_="tick")
    Markup('<text x="1" class="tick">a&lt;b</text>')
    """
    told = [f' {name.rstrip("_").replace("_", "-")}="{escape(_plain(value))}"' for name, value in attributes.items() if value is not None]
    return Markup(f"<{tag}{''.join(told)}>") + Markup("").join(children) + Markup(f"</{tag}>")


def _plain(value: object) -> object:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value


def drawing(key: str, title: str, description: str, width: float, height: float, *children: str) -> Markup:
    """A whole SVG with the title and the description that a screen reader says."""
    names = f"{key}-title {key}-desc"
    told = (element("title", title, id=f"{key}-title"), element("desc", description, id=f"{key}-desc"))
    return element("svg", *told, *children, viewBox=f"0 0 {width:g} {height:g}", role="img", aria_labelledby=names, class_="chart")


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from `low` to `high`, steps of 1, 2 or 5 times a power of ten, about `count` of them.

    >>> ticks(0, 10), ticks(0.912, 0.987)
    ([0.0, 2.0, 4.0, 6.0, 8.0, 10.0], [0.92, 0.94, 0.96, 0.98])
    """
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = min((factor * power for factor in (1, 2, 5, 10)), key=lambda step: abs(math.log(step / rough)))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    places = max(0, -math.floor(math.log10(step) + 1e-9))
    return [round(at * step, places) for at in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Ticks of a logarithmic axis: 1, 2, 5 of every decade, or the decades alone where there are many.

    >>> log_ticks(0.9, 60)
    [1.0, 2.0, 5.0, 10.0, 20.0, 50.0]
    """
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    factors = (1, 2, 5) if math.log10(high / low) < 2.5 else (1,)
    return [value for power in range(first, last + 1) for factor in factors if low <= (value := float(f"{factor}e{power}")) <= high]


@dataclass(frozen=True)
class Scale:
    """From values `low..high` to places `start..end`, linear or logarithmic."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self, count: int = 5) -> list[float]:
        found = log_ticks(self.low, self.high) if self.log else ticks(self.low, self.high, count)
        return found if len(found) > 1 else [self.low, self.high]


def fit(values: Sequence[float], start: float, end: float, *, log: bool = False, zero: bool = False, low: float = -math.inf, high: float = math.inf) -> Scale:
    """A scale that holds all values with some air; `zero` begins at zero, `low` and `high` are never crossed."""
    least, most = min(values), max(values)
    if log:
        air = max(most / least, 1.5) ** 0.12
        return Scale(least / air, most * air, start, end, log=True)
    if zero:
        return Scale(0.0, most * 1.12 if most > 0 else 1.0, start, end)
    air = 0.1 * (most - least) or abs(most) * 0.05 or 0.5
    return Scale(max(low, least - air), min(high, most + air), start, end)


_SHAPES: dict[str, Callable[[float, float, float], Markup]] = {
    "teacher": lambda x, y, r: element("rect", x=x - 0.85 * r, y=y - 0.85 * r, width=1.7 * r, height=1.7 * r, class_="mark"),
    "alone": lambda x, y, r: _polygon((x, y - 1.1 * r), (x + r, y + 0.8 * r), (x - r, y + 0.8 * r)),
    "student": lambda x, y, r: element("circle", cx=x, cy=y, r=0.95 * r, class_="mark"),
    "shipped": lambda x, y, r: _polygon((x, y - 1.2 * r), (x + 1.2 * r, y), (x, y + 1.2 * r), (x - 1.2 * r, y)),
    "int8": lambda x, y, r: _polygon((x, y + 1.1 * r), (x + r, y - 0.8 * r), (x - r, y - 0.8 * r)),
    "other0": lambda x, y, r: _polygon(*_around(x, y, r, 5)),
    "other1": lambda x, y, r: _polygon(*_around(x, y, r, 6)),
    "other2": lambda x, y, r: element("rect", x=x - r, y=y - 0.55 * r, width=2 * r, height=1.1 * r, class_="mark"),
}
DASHES = {"teacher": None, "alone": "6 4", "student": None, "shipped": "2 3", "int8": "8 3 2 3", "other0": "1 3", "other1": "10 4", "other2": "4 2 1 2"}


def _polygon(*corners: tuple[float, float]) -> Markup:
    return element("polygon", points=" ".join(f"{x:.2f},{y:.2f}" for x, y in corners), class_="mark")


def _around(x: float, y: float, r: float, corners: int) -> list[tuple[float, float]]:
    angles = [2 * math.pi * at / corners - math.pi / 2 for at in range(corners)]
    return [(x + 1.1 * r * math.cos(angle), y + 1.1 * r * math.sin(angle)) for angle in angles]


def mark(look: str, x: float, y: float, radius: float = 5.5) -> Markup:
    """The mark of a model: its own shape beside its own colour."""
    return _SHAPES[look](x, y, radius)


@dataclass(frozen=True)
class Box:
    """A rectangle that labels keep clear of."""

    x0: float
    y0: float
    x1: float
    y1: float

    def distance(self, x: float, y: float) -> float:
        return math.hypot(max(self.x0 - x, 0.0, x - self.x1), max(self.y0 - y, 0.0, y - self.y1))

    def overlap(self, other: "Box") -> float:
        return max(0.0, min(self.x1, other.x1) - max(self.x0, other.x0)) * max(0.0, min(self.y1, other.y1) - max(self.y0, other.y0))


def place_labels(labels: Sequence[tuple[str, float, float]], obstacles: Sequence[Box], frame: Box) -> list[tuple[Box, bool]]:
    """Give every label (text, x, y of its mark) the nearest box that covers least; True where a line should lead to it: far off, or nearer to another mark."""
    taken, placed = list(obstacles), []
    for text, x, y in labels:
        others = [(u, v) for name, u, v in labels if (name, u, v) != (text, x, y)]
        width = CHAR * len(text)
        best: tuple[float, Box, bool] | None = None
        for distance in (11.0, 20.0, 34.0, 50.0, 70.0):
            for angle in (0, 180, 90, 270, 45, 135, 225, 315, 20, 160, 200, 340):
                dx, dy = math.cos(math.radians(angle)), math.sin(math.radians(angle))
                cx = x + dx * (distance + width / 2)
                cy = y - dy * (distance + 6)
                box = Box(cx - width / 2, cy - 7, cx + width / 2, cy + 7)
                covered = sum(box.overlap(other) for other in taken)
                outside = (box.x1 - box.x0) * (box.y1 - box.y0) - box.overlap(frame)
                mistaken = any(box.distance(u, v) < box.distance(x, y) + 3 for u, v in others)
                cost = covered + 4 * outside + 1.2 * distance + 40 * mistaken
                if best is None or cost < best[0] - 1e-9:
                    best = (cost, box, mistaken or distance > 25)
        assert best is not None
        taken.append(best[1])
        placed.append(best[1:])
    return placed


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move places apart until neighbours keep `gap`, in their order, between `low` and `high` where there is room.

    >>> spread([10, 11, 40], 12, 0, 100)
    [4.5, 16.5, 40.0]
    """
    order = sorted(range(len(wanted)), key=lambda at: wanted[at])
    groups: list[tuple[list[int], float]] = []
    for at in order:
        groups.append(([at], float(wanted[at])))
        while len(groups) > 1 and groups[-1][1] - gap * (len(groups[-1][0]) - 1) / 2 < groups[-2][1] + gap * (len(groups[-2][0]) + 1) / 2:
            (right, middle), (left, other) = groups.pop(), groups.pop()
            groups.append((left + right, (middle * len(right) + other * len(left)) / (len(left) + len(right))))
    found = [0.0] * len(wanted)
    for members, middle in groups:
        half = gap * (len(members) - 1) / 2
        middle = max(low + half, min(high - half, middle))
        for step, at in enumerate(members):
            found[at] = middle - half + gap * step
    return found
