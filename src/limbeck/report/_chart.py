"""The charts of the report as inline SVG: scatter, lines, reliability, intervals, bars. Colours are CSS variables, shapes and dashes say the same again."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from ._format import DASH, points
from ._schema import Bin
from ._svg import CHAR, DASHES, Box, Scale, drawing, element, fit, mark, place_labels, spread

WIDTH, HEIGHT = 400.0, 290.0
LEFT, RIGHT, TOP, BOTTOM = 48.0, 14.0, 26.0, 40.0
Wording = Callable[[float], str]


@dataclass(frozen=True)
class Axis:
    """What an axis shows and how its ticks are written."""

    title: str
    wording: Wording
    log: bool = False
    zero: bool = False
    low: float = float("-inf")
    high: float = float("inf")

    def scale(self, values: Sequence[float], start: float, end: float) -> Scale:
        return fit(values, start, end, log=self.log, zero=self.zero, low=self.low, high=self.high)


@dataclass(frozen=True)
class Point:
    """One model in a scatter: where it lies, and the ends of its interval in y."""

    label: str
    look: str
    x: float
    y: float
    low: float | None = None
    high: float | None = None
    tip: str = ""


@dataclass(frozen=True)
class Series:
    """One line: its points in order, and which of them is marked."""

    label: str
    look: str
    points: Sequence[tuple[float, float]]
    best: tuple[float, float] | None = None


@dataclass(frozen=True)
class Interval:
    """One difference with the ends of its interval, as fractions."""

    label: str
    value: float
    low: float | None
    high: float | None


def _frame(x: Scale, y: Scale, across: Axis, up: Axis, x_count: int = 5) -> list[Markup]:
    """Grid, ticks and titles; the title of y stands above the axis, upright."""
    drawn = [element("text", f"{up.title} (log scale)" if up.log else up.title, x=0.0, y=12.0, class_="title")]
    for value in y.ticks():
        drawn.append(element("line", x1=x.start, x2=x.end, y1=y(value), y2=y(value), class_="grid"))
        drawn.append(element("text", up.wording(value), x=x.start - 7, y=y(value) + 4, text_anchor="end", class_="tick"))
    for value in x.ticks(x_count):
        drawn.append(element("line", x1=x(value), x2=x(value), y1=y.start, y2=y.start + 4, class_="axis"))
        drawn.append(element("text", across.wording(value), x=x(value), y=y.start + 17, text_anchor="middle", class_="tick"))
    drawn.append(element("line", x1=x.start, x2=x.end, y1=y.start, y2=y.start, class_="axis"))
    title = f"{across.title} (log scale)" if across.log else across.title
    drawn.append(element("text", title, x=x.end, y=y.start + 35, text_anchor="end", class_="title"))
    return drawn


def scatter(key: str, title: str, description: str, marks: Sequence[Point], across: Axis, up: Axis) -> Markup:
    """Marks with their intervals and names, on two axes; marks of one cost stand side by side."""
    ends = [end for each in marks for end in (each.y, each.low, each.high) if end is not None]
    x = across.scale([each.x for each in marks], LEFT, WIDTH - RIGHT)
    y = up.scale(ends, HEIGHT - BOTTOM, TOP)
    columns = spread([x(each.x) for each in marks], 11, LEFT, WIDTH - RIGHT)
    whiskers, shapes, obstacles = [], [], []
    for each, at in zip(marks, columns, strict=True):
        level = y(each.y)
        low, high = y(each.y if each.low is None else each.low), y(each.y if each.high is None else each.high)
        obstacles += [Box(at - 7, level - 7, at + 7, level + 7), Box(at - 1.5, high, at + 1.5, low)]
        lines = [element("line", x1=at, x2=at, y1=low, y2=high), *(element("line", x1=at - 4, x2=at + 4, y1=end, y2=end) for end in (low, high))]
        if each.low is not None and each.high is not None:
            whiskers.append(element("g", *lines, class_=f"whisker look-{each.look}"))
        shapes.append(element("g", element("title", each.tip or each.label), mark(each.look, at, level), class_=f"look-{each.look}"))
    places = place_labels(
        [(each.label, at, y(each.y)) for each, at in zip(marks, columns, strict=True)], obstacles, Box(LEFT, TOP - 4, WIDTH, HEIGHT - BOTTOM - 2)
    )
    names: list[Markup] = []
    for each, at, (box, far) in zip(marks, columns, places, strict=True):
        if far:
            end = min(max(at, box.x0), box.x1), min(max(y(each.y), box.y0), box.y1)
            names.append(element("line", x1=at, y1=y(each.y), x2=end[0], y2=end[1], class_="lead"))
        names.append(element("text", each.label, x=(box.x0 + box.x1) / 2, y=box.y1 - 3, text_anchor="middle", class_=f"name look-{each.look}"))
    return drawing(key, title, description, WIDTH, HEIGHT, *_frame(x, y, across, up), *whiskers, *names, *shapes)


def lines(key: str, title: str, description: str, series: Sequence[Series], across: Axis, up: Axis) -> Markup:
    """Lines with their names at their ends; a ring marks the best point of each."""
    values = [point for each in series for point in each.points]
    room = max(len(each.label) for each in series) * CHAR + 12
    x = Scale(min(at for at, _ in values), max(at for at, _ in values), LEFT, WIDTH - room)
    if x.low == x.high:
        x = Scale(x.low - 1, x.high + 1, LEFT, WIDTH - room)
    y = up.scale([level for _, level in values], HEIGHT - BOTTOM, TOP)
    drawn = _frame(x, y, across, up)
    levels = spread([y(each.points[-1][1]) for each in series], 15, TOP, HEIGHT - BOTTOM - 6)
    for each, level in zip(series, levels, strict=True):
        path = "M" + "L".join(f"{x(at):.1f},{y(value):.1f}" for at, value in each.points)
        last = x(each.points[-1][0]), y(each.points[-1][1])
        parts = [element("path", d=path, class_="line", stroke_dasharray=DASHES[each.look]), mark(each.look, *last, radius=3.5)]
        if each.best is not None:
            parts.append(element("circle", cx=x(each.best[0]), cy=y(each.best[1]), r=5.0, class_="ring"))
        if last[0] < x.end - 1 or abs(level - last[1]) > 3:
            parts.append(element("line", x1=last[0] + 4, y1=last[1], x2=x.end + 8, y2=level, class_="lead"))
        parts.append(element("text", each.label, x=x.end + 10, y=level + 4, class_="name"))
        drawn.append(element("g", element("title", each.label), *parts, class_=f"look-{each.look}"))
    return drawing(key, title, description, WIDTH, HEIGHT, *drawn)


def reliability(key: str, title: str, description: str, look: str, bins: Sequence[Bin]) -> Markup:
    """Accuracy against confidence, bin by bin; a dot's area is its share of the examples, a stem its distance from perfect; below, how many."""
    side, strip, left, top = 180.0, 28.0, 38.0, 22.0
    x, y = Scale(0, 1, left, side - 6), Scale(0, 1, side - 2, top)
    drawn = [element("text", "accuracy", x=0.0, y=11.0, class_="title")]
    for value in (0.0, 0.5, 1.0):
        drawn.append(element("line", x1=x.start, x2=x.end, y1=y(value), y2=y(value), class_="grid"))
        drawn.append(element("text", f"{100 * value:.0f}%", x=x.start - 5, y=y(value) + 4, text_anchor="end", class_="tick"))
        drawn.append(element("text", f"{100 * value:.0f}%", x=x(value), y=side + strip + 20, text_anchor="end" if value == 1 else "middle", class_="tick"))
    drawn.append(element("line", x1=x(0), y1=y(0), x2=x(1), y2=y(1), class_="ideal"))
    most = max(each.count for each in bins)
    total = sum(each.count for each in bins)
    for each in bins:
        width = max(1.0, x(each.high) - x(each.low) - 2)
        tall = (strip - 6) * each.count / most
        tip = f"confidence {100 * each.low:.0f}{DASH}{100 * each.high:.0f}%: {each.count:,} examples"
        parts = [element("rect", x=x(each.low) + 1, y=side + strip - tall, width=width, height=tall, class_="column")]
        if each.count and each.accuracy is not None and each.confidence is not None:
            at, level = x(each.confidence), y(each.accuracy)
            radius = 2.5 + 7 * (each.count / total) ** 0.5
            tip += f", {100 * each.accuracy:.1f}% right at {100 * each.confidence:.1f}% confidence"
            parts += [element("line", x1=at, x2=at, y1=y(each.confidence), y2=level, class_="stem"), element("circle", cx=at, cy=level, r=radius, class_="dot")]
        drawn.append(element("g", element("title", tip), *parts))
    drawn.append(element("line", x1=x.start, x2=x.end, y1=side + strip, y2=side + strip, class_="axis"))
    drawn.append(element("text", "confidence", x=side - 6, y=side + strip + 36, text_anchor="end", class_="title"))
    return drawing(key, title, description, side, side + strip + 42, element("g", *drawn, class_=f"look-{look}"))


def intervals(key: str, title: str, description: str, rows: Sequence[Interval], better: str, worse: str) -> Markup:
    """Differences with their intervals around a line at zero, in points."""
    step, top = 44.0, 22.0
    ends = [end for row in rows for end in (row.value, row.low, row.high) if end is not None] + [0.0]
    reach = max(1.1 * max(abs(end) for end in ends), 1e-4)
    height = top + step * len(rows)
    x = Scale(-reach, reach, 14.0, WIDTH - 14)
    drawn = [
        element("text", f"← {worse}", x=0.0, y=12.0, class_="title"),
        element("text", f"{better} →", x=WIDTH, y=12.0, text_anchor="end", class_="title"),
    ]
    for value in x.ticks(6):
        drawn.append(element("line", x1=x(value), x2=x(value), y1=top, y2=height, class_="axis" if value == 0 else "grid"))
        drawn.append(element("text", points(value, 1 if reach < 0.05 else 0), x=x(value), y=height + 15, text_anchor="middle", class_="tick"))
    for at, row in enumerate(rows):
        level = top + step * at + 29
        clear = row.low is not None and row.high is not None and (row.low > 0 or row.high < 0)
        drawn.append(element("text", row.label, x=WIDTH / 2, y=level - 12, text_anchor="middle", class_="name halo"))
        if row.low is not None and row.high is not None:
            drawn.append(element("line", x1=x(row.low), x2=x(row.high), y1=level, y2=level, class_="span"))
        drawn.append(element("circle", cx=x(row.value), cy=level, r=5.5, class_="estimate" if clear else "estimate open"))
    drawn.append(element("text", "percentage points", x=WIDTH, y=height + 32, text_anchor="end", class_="title"))
    return drawing(key, title, description, WIDTH, height + 38, *drawn)


def bar(value: float, reach: float) -> Markup:
    """A small bar left or right of zero, beside the figure that a table gives in words."""
    width, height = 120.0, 14.0
    x = Scale(-reach, reach, 0.0, width)
    start, end = sorted((x(0), x(value)))
    kind = "gain" if value > 0 else "loss"
    drawn = [element("rect", x=start, y=2.0, width=end - start, height=height - 4, class_=kind)] if value else []
    drawn.append(element("line", x1=width / 2, x2=width / 2, y1=0.0, y2=height, class_="axis"))
    return element("svg", *drawn, viewBox=f"0 0 {width:g} {height:g}", aria_hidden="true", focusable="false", class_="bar")


def key_mark(look: str) -> Markup:
    """The mark of a model by itself, to stand beside its name."""
    return element("svg", mark(look, 8.0, 8.0, 5.5), viewBox="0 0 16 16", aria_hidden="true", focusable="false", class_=f"key look-{look}")


def plain(value: float) -> str:
    """A tick's number."""
    return f"{value:,.6g}"
