"""How far the planner's predictions are off on this machine: steps of trainings, engines, and a service's queue.

Costs are fitted to the times of some trainings and engines (`benchmarks/predicting/cases.py`); others of other sizes,
that were measured in the same turns, are predicted with them. Times are the least of several rounds: what the machine
does when nothing else does. The queue is that of an hour of requests that come in bursts, drawn from a seed and sent
twenty times as fast, to an engine that serves 16 at once: the real one, and the simulator, which has the real scheduler
and predicted steps, as much slower as loads were that are measured between parts of the hour. Compared are, at the
50th and 95th percentile over requests, how many waited when a request came, and the time until its first token. No
machine here fails often enough: what failures of nodes cost a training is
simulated, and held against Daly's formula.
"""

from collections.abc import Mapping
from statistics import fmean

from arctic_cluster import paths
from arctic_model.planning.costs import Costs
from arctic_simulator.training import Fleet, Run, train
from benchmarks.drawing import Chart
from benchmarks.form import arguments, draw, finish, note, print_table, wait_for_quiet
from benchmarks.predicting.hour import PARTS, Queue, compared, queues, service
from benchmarks.predicting.serving import engines, measured_loads, predicted_loads
from benchmarks.predicting.training import Predicted, measured_trainings, predicted_trainings

DAY, YEAR = 86400.0, 365 * 86400.0
FLEET = Fleet(nodes=1024, spares=16, node_between_failures=5 * YEAR, repair=DAY)
RUN = Run(work=30 * DAY, interval=0.0, checkpoint=60.0, restart=300.0)
RUNS = 20
"""What one run meets is chance."""
INTERVALS = (600.0, 1200.0, 2400.0, 3600.0, 5400.0, 7200.0, 10800.0, 14400.0, 21600.0)


def main() -> None:
    """Print the tables and the figures."""
    told = arguments(__doc__, "fewer rounds, a third of the hour")
    wait_for_quiet()
    with engines() as loaded, service() as engine:
        loads = measured_loads(loaded, 3 if told.quick else 8)
        services = predicted_loads(loads)
        real, simulated = queues(engine, loaded, loads, services.costs, PARTS // 3 if told.quick else PARTS)
    trainings = predicted_trainings(measured_trainings(6 if told.quick else 14))
    queue = compared(real, simulated)
    costs = paths.cache() / "benchmarks" / "planner_costs.json"
    costs.parent.mkdir(parents=True, exist_ok=True)
    Costs(trainings.costs, services.costs).write(costs)
    note(f"for `arctic plan --costs`: {costs}")
    _print("Trainings that costs are fitted to, seconds a step", trainings.fitted)
    _print("Trainings, seconds a step", trainings.predicted)
    _print("Engines that costs are fitted to, seconds a step", services.fitted)
    _print("Engines, seconds a step", services.steps)
    _print("Engines, seconds of all requests", services.rates)
    _print(f"An hour of {len(real.first)} requests", queue)
    goodput = _failures()
    draw(told, _queue_chart(real, simulated), "planner_queue")
    draw(told, goodput, "planner_failures")
    finish(
        told,
        {
            "train_error_p100": _worst(trainings.predicted),
            "serve_error_p100": max(_worst(services.steps), _worst(services.rates)),
            "queue_error_p95": _worst(queue),
        },
        less_is_better=("train_error_p100", "serve_error_p100", "queue_error_p95"),
    )


def _worst(of: Mapping[str, Predicted]) -> float:
    return max(each.error for each in of.values())


def _print(title: str, of: Mapping[str, Predicted]) -> None:
    rows = [
        (name, f"{each.predicted:.4g}", f"{each.measured:.4g}", f"{each.predicted / each.measured - 1:+.1%}")
        for name, each in of.items()
    ]
    print_table(title, ("", "predicted", "measured", "off by"), rows)


def _queue_chart(real: Queue, simulated: Queue) -> Chart:
    def line(values: list[float]) -> list[tuple[float, float]]:
        ordered = sorted(values)
        return [(100 * (place + 1) / len(ordered), value) for place, value in enumerate(ordered)]

    lines = {"real engine": line(list(real.first)), "simulated": line(list(simulated.first))}
    return Chart("An hour of requests, twenty times as fast", "percent of requests", "first token within, s", lines)


def _failures() -> Chart:
    """Print and draw what a training keeps of its time by the interval of checkpoints, simulated and by the formula."""
    formula = RUN.interruptions(FLEET)
    rows, simulated, expected = [], [], []
    for interval in INTERVALS:
        run = Run(RUN.work, interval, RUN.checkpoint, RUN.restart)
        goodput = RUN.work / fmean(train(run, FLEET, seed=seed).seconds for seed in range(RUNS))
        simulated.append((interval / 60, goodput))
        expected.append((interval / 60, formula.goodput(interval)))
        rows.append((f"{interval / 60:.0f}", f"{goodput:.4f}", f"{formula.goodput(interval):.4f}"))
    print_table(
        f"{FLEET.nodes} nodes, one of which fails every {formula.between_failures / 3600:.1f} h: share of the time "
        f"that counts; best by Daly every {formula.best_interval / 60:.0f} minutes",
        ("minutes between checkpoints", "simulated", "by Daly"),
        rows,
    )
    title = f"{FLEET.nodes} nodes that fail every five years each"
    return Chart(
        title, "minutes between checkpoints", "share of the time", {"simulated": simulated, "by Daly": expected}
    )


if __name__ == "__main__":
    main()
