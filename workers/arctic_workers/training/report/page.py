"""The report of a run as one HTML page, with nothing outside it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

from arctic_workers.training.files import write_atomically
from arctic_workers.training.journal import exposed_share
from arctic_workers.training.report.drawing import Points, heat, lines, shares, short
from arctic_workers.training.report.run import Attempt, Line, Run

REPORT = "report.html"
_STYLE = Path(__file__).with_name("style.css")


def write_page(folder: Path) -> Path:
    """Write the report of a run into its folder, and return where; FileNotFoundError if it has no journal."""
    path = folder / REPORT
    write_atomically(path, page(Run.read(folder)).encode())
    return path


def page(run: Run) -> str:
    """Return the report of a run as HTML."""
    bands = {stage.name: (float(stage.first_tokens), float(stage.last_tokens)) for stage in run.stages}
    marks = [tokens for spike in run.spikes if (tokens := _tokens_at(run.entries, spike["step"])) is not None]

    def over(title: str, unit: str, series: Mapping[str, Points], *, spikes: bool = False) -> str:
        return lines(title, unit, series, bands, marks if spikes else ())

    sections = [
        _tiles(run),
        _section("Loss", _losses(run, over)),
        _section("Stages", [_stages(run)]),
        _section("Sources", [_sources(run)]),
        _section("Speed", _speed(run, over)),
        _section("Exchanges between ranks", _exchanges(run, over)),
        _section("Routers", _routers(run, over)),
        _section("Attempts", [_attempts(run.attempts)]),
        _section("Losses that jumped", [_spikes(run.spikes)]),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(run.name)}</title><style>{_STYLE.read_text()}</style></head><body><h1>{escape(run.name)}</h1>"
        f"<p>{_span(run)}</p>{''.join(sections)}</body></html>\n"
    )


def _section(title: str, parts: Iterable[str]) -> str:
    found = [part for part in parts if part]
    if not found:
        return ""
    body = f'<div class="grid2">{"".join(found)}</div>' if found[0].startswith("<figure") else "".join(found)
    return f"<h2>{escape(title)}</h2>{body}"


def _span(run: Run) -> str:
    if not run.entries:
        return "no step has been recorded yet"
    return f"recorded from {escape(run.entries[0]['time'])} to {escape(run.entries[-1]['time'])}"


def _tiles(run: Run) -> str:
    if not run.entries:
        return ""
    last = run.entries[-1]
    spent = sum(sum(attempt.seconds.values()) for attempt in run.attempts)
    tiles = {
        "step": f"{last['step']:,}",
        "tokens": short(last["tokens"]),
        "loss, nats a token": f"{last['loss']:.4f}",
        "tokens a second": short(last["tokens_per_second"]),
        "MFU": f"{last['mfu']:.1%}" if last["mfu"] else "not known",
        "hours, all attempts": f"{spent / 3600:.2f}",
    }
    drawn = "".join(f"<div><b>{value}</b><span>{name}</span></div>" for name, value in tiles.items())
    return f'<div class="tiles">{drawn}</div>'


def _curve(entries: Sequence[Line], value: Callable[[Line], float | None]) -> Points:
    found = ((float(entry["tokens"]), value(entry)) for entry in entries)
    return [(tokens, y) for tokens, y in found if y is not None]


def _tokens_at(entries: Sequence[Line], step: int) -> float | None:
    return next((float(entry["tokens"]) for entry in entries if entry["step"] >= step), None)


def _losses(run: Run, over: Callable[..., str]) -> Iterable[str]:
    sources = sorted({name for entry in run.entries for name in entry["loss_by_source"]})
    yield over("Training loss", "nats a token, over tokens", {"loss": _of(run, "loss")}, spikes=True)
    by_source = {name: _curve(run.entries, partial(_loss_of, name)) for name in sources}
    yield over("Loss by source", "nats a token, over tokens", by_source)
    yield over("Gradient norm", "before clipping", {"norm": _of(run, "gradient_norm")})
    yield over("Learning rate", "", {"rate": _of(run, "learning_rate")})


def _loss_of(source: str, entry: Line) -> float | None:
    loss: float | None = entry["loss_by_source"].get(source)
    return loss


def _of(run: Run, field: str) -> Points:
    return _curve(run.entries, lambda entry: entry[field])


def _speed(run: Run, over: Callable[..., str]) -> Iterable[str]:
    yield over("Tokens a second", "", {"rate": [point for point in _of(run, "tokens_per_second") if point[1]]})
    yield over("MFU", "of the devices' peak", {"mfu": [point for point in _of(run, "mfu") if point[1]]})
    yield shares("Where the time goes", {f"attempt {attempt.name}": attempt.seconds for attempt in run.attempts[-8:]})


def _exchanges(run: Run, over: Callable[..., str]) -> Iterable[str]:
    """Yield what of the exchanges is only waited for: over the run by kind, and in its last step by layer."""
    told = [entry for entry in run.entries if entry.get("exposed_communication")]
    if not told:
        return
    last = told[-1]
    of_layers, of_none = _kinds(last, layered=True), _kinds(last, layered=False)
    curves = {
        name: _curve(told, partial(_exposed, which)) for name, which in {"all": {}, **of_layers, **of_none}.items()
    }
    yield over("Exposed share", "of the exchanges' time, waited for", curves)
    rows = [
        [str(layer), *(_percent(_exposed({"layer": layer, **which}, last)) for which in of_layers.values())]
        for layer in sorted({part["layer"] for part in last["exposed_communication"]} - {None})
    ]
    chunks = f"exposed at the end, in {last['expert_chunks']} chunks: layer"
    if rows:
        yield table([chunks, *of_layers], rows, range(1, 1 + len(of_layers)))


def _kinds(entry: Line, *, layered: bool) -> dict[str, dict[str, Any]]:
    """Return the exchanges of an entry that belong to layers, or to none, by a name: what is said alike of each."""
    parts = [part for part in entry["exposed_communication"] if (part["layer"] is not None) == layered]
    found = sorted({(part["backward"], part["kind"]) for part in parts})
    return {
        f"{kind}, {'backward' if backward else 'forward'}" if layered else kind: {"kind": kind, "backward": backward}
        for backward, kind in found
    }


def _exposed(which: Mapping[str, Any], entry: Line) -> float | None:
    parts: Sequence[Line] = entry["exposed_communication"]
    return exposed_share(part for part in parts if which.items() <= part.items())


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def _routers(run: Run, over: Callable[..., str]) -> Iterable[str]:
    layers = sorted({router["layer"] for entry in run.entries for router in entry["routers"]})

    def of(layer: int, value: Callable[[Mapping[str, Any]], float]) -> Points:
        return _curve(
            run.entries,
            lambda entry: next((value(router) for router in entry["routers"] if router["layer"] == layer), None),
        )

    def figure(title: str, unit: str, value: Callable[[Mapping[str, Any]], float]) -> str:
        named = {f"layer {layer}": of(layer, value) for layer in layers}
        return over(title, unit, named if len(named) <= 8 else _spread(named))

    yield figure("Imbalance", "busiest expert over even load", lambda it: max(it["load"]) * len(it["load"]))
    yield figure("Entropy", "of even probabilities, 0 to 1", lambda it: it["entropy"])
    latest: Sequence[Mapping[str, Any]] = next(
        (entry["routers"] for entry in reversed(run.entries) if entry["routers"]), []
    )
    yield heat(
        "Load of each expert",
        "latest, over that of even routing",
        {f"layer {it['layer']}": [share * len(it["load"]) for share in it["load"]] for it in latest},
    )
    faults: Sequence[tuple[str, str, Callable[[Mapping[str, Any]], float]]] = (
        ("Dead experts", "no token for 100 steps", lambda it: float(len(it["dead"]))),
        ("Dropped tokens", "share of the choices that experts had no room for", lambda it: it["dropped"]),
    )
    for title, unit, value in faults:
        if any(value(router) for entry in run.entries for router in entry["routers"]):
            yield figure(title, unit, value)


def _spread(series: Mapping[str, Points]) -> dict[str, Points]:
    """Return the least, the middle and the greatest of many lines with the same places."""
    columns = [sorted(y for _, y in column) for column in zip(*series.values(), strict=False)]
    places = [x for x, _ in next(iter(series.values()))]
    picks = {"least": 0.0, "median": 0.5, "greatest": 1.0}
    return {
        name: [(x, ys[round(at * (len(ys) - 1))]) for x, ys in zip(places, columns, strict=False)]
        for name, at in picks.items()
    }


def table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """Return a table, some columns of which hold numbers; "" for no rows."""
    if not rows:
        return ""

    def row(cells: Sequence[str], tag: str) -> str:
        marks = (' class="n"' if index in numbers else "" for index in range(len(cells)))
        return "".join(f"<{tag}{mark}>{escape(cell)}</{tag}>" for cell, mark in zip(cells, marks, strict=True))

    body = "".join(f"<tr>{row(cells, 'td')}</tr>" for cells in rows)
    return f'<div class="table"><table><tr>{row(head, "th")}</tr>{body}</table></div>'


def _stages(run: Run) -> str:
    def loss(value: float | None) -> str:
        return "" if value is None else f"{value:.4f}"

    rows = [
        [
            stage.name,
            short(stage.last_tokens - stage.first_tokens),
            *map(loss, (stage.first_loss, stage.last_loss)),
            stage.category,
            *map(loss, stage.held_out),
        ]
        for stage in run.stages
    ]
    head = ["stage", "tokens", "first loss", "last loss", "held-out text", "loss at its start", "at its end"]
    return table(head, rows, (1, 2, 3, 5, 6))


def _sources(run: Run) -> str:
    """Return what was found in each source, and how often it was read: at the end, and by the curriculum."""
    read = run.entries[-1].get("epochs", {}) if run.entries else {}
    rows = [
        [
            source["name"],
            *(f"{source.get(count, 0):,}" for count in ("documents", "skipped", "tokens")),
            *(f"{times:.2f}" for times in (read.get(source["name"], 0.0), source.get("plannedEpochs", 0.0))),
            ", ".join(source.get("unusedSplits", ())),
        ]
        for source in run.sources
    ]
    head = ["source", "documents", "rows left out", "tokens to train on", "times read", "of planned", "splits not read"]
    return table(head, rows, (1, 2, 3, 4, 5))


def _attempts(attempts: Sequence[Attempt]) -> str:
    rows = [
        [
            attempt.name,
            str(attempt.began.get("time", "")),
            str(attempt.began.get("step", "")),
            str(attempt.began.get("ranks", "")),
            str(attempt.ended.get("step", "")),
            str(attempt.ended.get("reason", "")) or "no word of an end",
            str(attempt.ended.get("message", "")),
        ]
        for attempt in attempts
    ]
    return table(["attempt", "began", "from step", "ranks", "to step", "ended as", "because"], rows, (0, 2, 3, 4))


def _spikes(spikes: Sequence[Line]) -> str:
    rows = [
        [
            spike["time"],
            str(spike["step"]),
            spike["stage"],
            f"{spike['loss']:.4f}",
            f"{spike['limit']:.4f}",
            spike["policy"],
        ]
        for spike in spikes
    ]
    return table(["time", "step", "stage", "loss", "expected at most", "answer"], rows, (1, 3, 4))
