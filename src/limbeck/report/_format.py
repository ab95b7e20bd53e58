"""Figures as people read them: enough digits and no more, a true minus, units that fit."""

import math

MINUS = "\u2212"
TIMES = "\u00d7"
DASH = "\u2013"


def decimals(examples: int | None) -> int:
    """How many decimals a percentage deserves: one, or two where one example is less than 0.05 points."""
    return 2 if examples is not None and examples >= 2000 else 1


def _signed(value: float, places: int) -> str:
    text = f"{abs(value):.{places}f}"
    if float(text) == 0:
        return text
    return f"{MINUS if value < 0 else '+'}{text}"


def percent(fraction: float, places: int = 1) -> str:
    """A fraction as a percentage; what is not all never reads as 100%.

    >>> percent(0.96944), percent(0.99996), percent(1.0), percent(0.99265, 2)
    ('96.9%', '99.996%', '100%', '99.27%')
    """
    if fraction >= 1:
        return "100%"
    while places < 6 and float(f"{100 * fraction:.{places}f}") == 100:
        places += 1
    return f"{100 * fraction:.{places}f}%"


def percent_span(low: float, high: float, places: int = 1) -> str:
    """An interval of percentages, without their signs.

    >>> percent_span(0.951, 0.982)
    '95.1–98.2'
    """
    return f"{percent(low, places)[:-1]}{DASH}{percent(high, places)[:-1]}"


def points(difference: float, places: int = 1) -> str:
    """A difference of fractions in percentage points, signed.

    >>> points(-0.0056), points(0.0139), points(0.0)
    ('−0.6', '+1.4', '0.0')
    """
    return _signed(100 * difference, places)


def points_span(low: float, high: float, places: int = 1) -> str:
    """An interval of differences in percentage points.

    >>> points_span(-0.019, 0.007)
    '−1.9 to +0.7'
    """
    return f"{points(low, places)} to {points(high, places)}"


def times(ratio: float) -> str:
    """How many times: two decimals near one, none above a hundred.

    >>> times(12.31), times(1.0432), times(431.2)
    ('12.3×', '1.04×', '431×')
    """
    return f"{_times(ratio, ratio)}{TIMES}"


def times_span(low: float, high: float) -> str:
    """An interval of ratios, both ends with as many decimals.

    >>> times_span(3.91, 4.3), times_span(0.97, 1.07)
    ('3.9–4.3', '0.97–1.07')
    """
    return f"{_times(low, low)}{DASH}{_times(high, low)}"


def _times(ratio: float, yardstick: float) -> str:
    places = 2 if yardstick < 2 else 1 if yardstick < 100 else 0
    return f"{ratio:,.{places}f}"


def significant(value: float, digits: int = 3) -> str:
    """A number with so many significant digits, in powers of ten only where it must.

    >>> significant(0.12345), significant(12.345), significant(1234.5), significant(3.1e-7), significant(0)
    ('0.123', '12.3', '1,234', '3.1e−7', '0')
    """
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    if exponent < -4 or exponent > 8:
        mantissa, power = f"{value:.{digits - 1}e}".split("e")
        mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
        return f"{mantissa}e{int(power)}".replace("-", MINUS)
    return f"{value:,.{max(0, digits - 1 - exponent)}f}".replace("-", MINUS)


def amount(value: float) -> str:
    """A count with its thousands or millions.

    >>> amount(950), amount(96_234), amount(38_512_000), amount(4.1e9)
    ('950', '96.2 k', '38.5 M', '4.10 G')
    """
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{significant(value / size)} {unit}"
    return f"{value:,.0f}"


def size(count: float) -> str:
    """Bytes in decimal units.

    >>> size(512), size(41_200), size(4_830_000)
    ('512 B', '41.2 kB', '4.83 MB')
    """
    text = amount(count)
    return f"{text}B" if text[-1].isalpha() else f"{text} B"


def duration(seconds: float) -> str:
    """A time as a person says it.

    >>> duration(0.034), duration(4.21), duration(134.2), duration(7320)
    ('0.03 s', '4.2 s', '2 min 14 s', '2 h 2 min')
    """
    if seconds < 1:
        return f"{seconds:.2f} s"
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def chance(p: float) -> str:
    """A p-value.

    >>> chance(0.754), chance(0.0123), chance(0.00004)
    ('p = 0.75', 'p = 0.012', 'p < 0.001')
    """
    return "p < 0.001" if p < 0.001 else "p = 1" if p > 0.995 else f"p = {significant(p, 2)}"
