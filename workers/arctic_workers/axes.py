"""Axes of charts that are drawn as SVG: where a value stands, and which round ones are marked."""

import math
from dataclasses import dataclass

TICKS = 6
"""About how many values are marked."""


@dataclass(frozen=True)
class Axis:
    """Values from `low` to `high`, drawn from `begin` to `end`."""

    low: float
    high: float
    begin: float
    end: float
    logarithmic: bool = False

    def place(self, value: float) -> float:
        """Return where a value is drawn."""
        low, high, value = (math.log(it) if self.logarithmic else it for it in (self.low, self.high, value))
        return self.begin + (self.end - self.begin) * (value - low) / (high - low)

    def ticks(self) -> list[float]:
        """Return round values between the ends."""
        if self.logarithmic:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            found = [digit * 10.0**power for power in decades for digit in (1, 2, 5)]
        else:
            rough = (self.high - self.low) / TICKS
            power = 10.0 ** math.floor(math.log10(rough))
            step = next(digit * power for digit in (1, 2, 5, 10) if digit * power >= rough)
            found = [step * count for count in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]
        return [value for value in found if self.low <= value <= self.high]


def axis_over(values: list[float], begin: float, end: float, *, logarithmic: bool = False) -> Axis:
    """Return an axis that has all of the values, with a margin."""
    low, high = min(values), max(values)
    if logarithmic:
        return Axis(low / 1.1, high * 1.1, begin, end, logarithmic=True)
    margin = 0.05 * (high - low) or abs(high) or 1.0
    return Axis(low - margin, high + margin, begin, end)
