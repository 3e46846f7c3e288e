"""What is kept of benchmarks, and what is called a regression."""

from pathlib import Path

import pytest

from benchmarks.results import DRAWINGS, FILE, Results, machine_of, regressions

ZEN3 = "x86_64 AuthenticAMD 25, avx2, 2 cores"
CPUINFO = """\
processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 25
model name\t: AMD EPYC
flags\t\t: fpu sse4_2 avx avx2 f16c fma {more}

processor\t: 1
"""


def test_figures_are_kept_beside_those_of_others_and_read_again() -> None:
    results = Results()
    results.keep(ZEN3, "serving", {"b1_of_limit": 0.8123, "b16_vs_llamacpp": 2.0}, "torch 2")
    results.keep(ZEN3, "soak", {"requests": 150000, "handles": -1, "rss_growth": 1e-05}, "torch 2")
    results.keep("another", "serving", {"b1_of_limit": 0.5}, "torch 2")
    read = Results(results.text())
    assert read.text() == results.text()
    assert read.of(ZEN3, "soak") == {"requests": 150000, "handles": -1, "rss_growth": 1e-05}
    assert read.of("another", "serving") == {"b1_of_limit": 0.5}
    assert read.of("another", "soak") == {}


def test_a_benchmarks_figures_take_the_place_of_its_last_ones() -> None:
    results = Results()
    results.keep(ZEN3, "serving", {"renamed_since": 1.0}, "torch 2")
    read = Results(results.text())
    read.keep(ZEN3, "serving", {"b1_of_limit": 0.9}, "torch 3")
    assert Results(read.text()).of(ZEN3, "serving") == {"b1_of_limit": 0.9}
    assert "torch 2" not in read.text()


def test_drawings_are_shown_with_the_kind_of_machine_that_they_were_made_on() -> None:
    results = Results()
    for machine in (ZEN3, "another"):
        results.keep(machine, "split_fuse", {"ratio": 0.3}, "torch 2")
    text = results.text([Path("drawings/x86_64-authenticamd-25-avx2-2-cores/split_fuse.svg")])
    assert text.count("![") == 1
    assert "![split_fuse](drawings/x86_64-authenticamd-25-avx2-2-cores/split_fuse.svg)" in text.split(ZEN3)[1]
    assert Results(text).text() == results.text()


def test_the_committed_file_is_as_it_is_written() -> None:
    drawings = [file.relative_to(FILE.parent) for file in DRAWINGS.glob("*/*.svg")]
    assert Results(FILE.read_text()).text(drawings) == FILE.read_text()


@pytest.mark.parametrize(
    ("before", "now", "less_is_better", "is_worse"),
    [
        (2.0, 1.81, False, False),
        (2.0, 1.79, False, True),
        (2.0, 3.0, False, False),
        (0.3, 0.32, True, False),
        (0.3, 0.34, True, True),
        (0.3, 0.1, True, False),
        (0.0, 1.0, True, True),
        (0.0, 0.0, True, False),
        (-2.0, -1.9, True, False),
    ],
)
def test_what_is_worse_by_more_than_a_tenth_is_a_regression(
    before: float, now: float, less_is_better: bool, is_worse: bool
) -> None:
    told = regressions({"figure": before, "gone": 1.0}, {"figure": now, "new": 1.0}, ["figure"] * less_is_better)
    assert bool(told) == is_worse
    assert all("figure" in sentence for sentence in told)


def test_a_machine_is_its_processors_family_its_vector_units_and_its_cores() -> None:
    assert machine_of(CPUINFO.format(more=""), "x86_64", 2) == ZEN3
    more = machine_of(CPUINFO.format(more="avx512_bf16 avx512f avx512vl amx_tile"), "x86_64", 8)
    assert more == "x86_64 AuthenticAMD 25, amx_tile avx2 avx512_bf16 avx512f, 8 cores"
    arm = "processor\t: 0\nFeatures\t: fp asimd sve\nCPU implementer\t: 0x41\nCPU part\t: 0xd40\n"
    assert machine_of(arm, "aarch64", 4) == "aarch64 0x41 0xd40, asimd sve, 4 cores"
