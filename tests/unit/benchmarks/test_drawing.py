"""Charts, as the XML that they are."""

from itertools import pairwise
from xml.etree import ElementTree

import pytest

from benchmarks.drawing import Chart, svg

SVG = "{http://www.w3.org/2000/svg}"


def lines_of(chart: Chart) -> list[list[tuple[float, float]]]:
    drawn = ElementTree.fromstring(svg(chart)).iter(f"{SVG}polyline")
    pairs = [[point.split(",") for point in line.attrib["points"].split()] for line in drawn]
    return [[(float(x), float(y)) for x, y in line] for line in pairs]


@pytest.mark.parametrize("logarithmic", [False, True])
def test_lines_go_right_with_x_and_up_with_y_within_the_picture(logarithmic: bool) -> None:
    rising = [(float(x), 400.0 * x + 100.0) for x in range(12)]
    falling = [(x, 5000.0 - 400.0 * x) for x, _ in rising]
    chart = Chart("of < and &", "x", "y", {"rising": rising, "falling": falling}, logarithmic=logarithmic)
    first, second = lines_of(chart)
    assert len(first) == len(second) == 12
    assert all(left[0] < right[0] and left[1] > right[1] for left, right in pairwise(first))
    assert all(left[1] < right[1] for left, right in pairwise(second))
    assert all(0 < x < 720 and 0 < y < 400 for x, y in (*first, *second))
    words = [text.text for text in ElementTree.fromstring(svg(chart)).iter(f"{SVG}text")]
    assert {"of < and &", "x", "y", "rising", "falling"} <= set(words)
    assert sum(word.replace(",", "").isdigit() for word in words if word) >= 6, "both axes have ticks"


@pytest.mark.parametrize("logarithmic", [False, True])
def test_what_stays_the_same_is_a_level_line(logarithmic: bool) -> None:
    [line] = lines_of(Chart("", "", "", {"level": [(1.0, 3.0), (2.0, 3.0)]}, logarithmic=logarithmic))
    assert line[0][1] == line[1][1]
