"""The page of an ablation."""

import re
from html.parser import HTMLParser

import pytest

from arctic_workers.ablation.page import page

RANK = {"variant": "peak=<1>", "tokens": 100, "objective": 2.5, "interval": [2.4, 2.6], "seeds": 3}
RESULTS = {
    "name": "rates",
    "whole": True,
    "objective": {"sql": 1},
    "unit": "nats a token",
    "more is better": False,
    "tokens": 500,
    "tokens of all": 1200,
    "ranking": [RANK, RANK | {"variant": "base", "tokens": 50, "interval": None, "seeds": 1}],
    "curves": {"peak=<1>, seed 0": [[50, 3.0], [100, 2.5]], "base, seed 0": []},
    "failed": {"rates-0a1b2c3d": "Diverged"},
    "best": {"kind": "ArcticTraining", "metadata": {"name": "rates-best"}},
    "scaling": None,
}
FORECAST = {"value": 2.0, "low": 1.9, "high": 2.1}
SWARM = {
    "foretold": {"late": {"books": 0.25, "python": 0.75}},
    "forecasts": {"foretold": FORECAST},
    "confirmed": {"foretold": [1.95, 2.05]},
    "errors": [0.5, -3.0],
    "widening": 1.2,
    "effects": [
        {"stage": "late", "source": "books", "change": 0.1, "deviation": 0.02},
        {"stage": "late", "source": "python", "change": -0.1, "deviation": 0.02},
    ],
}
LAW = {
    "variant": "base",
    "floor": 1.5,
    "exponent": 0.3,
    "exponent interval": [0.2, 0.4],
    "points": [[50, 3.0], [100, 2.5]],
    "line": [[50, 3.0, 2.9, 3.1], [100, 2.5, 2.4, 2.6]],
    "target": [10_000, 1.7, 1.6, 1.8],
}


class Closed(HTMLParser):
    """Finds elements that are not closed in order, and whatever comes from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.foreign: list[str] = []

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "br"):
            self.open.append(tag)
        self.foreign += [value for name, value in attributes if name in ("src", "href")]

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def read(results) -> str:
    text = page(results)
    parser = Closed()
    parser.feed(text)
    assert (parser.open, parser.foreign) == ([], [])
    return text


def test_a_grids_page_ranks_what_came_furthest_and_has_the_winners_manifest():
    text = read(RESULTS)
    assert "peak=&lt;1&gt;" in text
    assert "2.4000 to 2.6000" in text
    assert "rates-best" in text
    assert "Diverged" in text
    assert "Foretold" not in text


def test_a_swarms_page_puts_what_came_beside_what_was_foretold():
    text = read(RESULTS | {"swarm": SWARM, "scaling": LAW})
    assert "1 within 1.96 standard deviations, which were made 1.20 times as large" in text
    assert "75%" in text
    assert "-0.100 ± 0.020" in text
    assert "With 10,000 tokens it says 1.7000, between 1.6000 and 1.8000" in text


def test_a_page_of_nothing_yet_is_a_page():
    assert "Not all is trained yet" in read(
        RESULTS | {"ranking": [], "curves": {}, "best": None, "failed": {}, "whole": False}
    )


@pytest.mark.parametrize(("more_is_better", "helps"), [(False, "python"), (True, "books")])
def test_what_helps_is_blue_whichever_way_is_better(more_is_better, helps):
    text = read(RESULTS | {"swarm": SWARM, "more is better": more_is_better})
    cells = re.findall(r'class="(less|more)"[^>]*/><text[^>]*>([+-])', text)
    assert dict(cells)["less"] == {"books": "+", "python": "-"}[helps]
    assert ("More is better" in text, "Less is better" in text) == (more_is_better, not more_is_better)
