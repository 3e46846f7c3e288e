"""What a line of the log says."""

import asyncio
import json
import logging

from arctic_api.log_format import JsonFormatter, about

FIXED = {"kind": "ArcticTraining", "namespace": "team", "name": "tiny"}


def line(message: str, *arguments: object, always: dict[str, str] | None = None, **options: object) -> dict[str, str]:
    record = logging.getLogger("arctic").makeRecord(
        "arctic",
        logging.WARNING,
        __file__,
        1,
        message,
        arguments,
        options.get("exc_info"),  # type: ignore[arg-type]
    )
    found: dict[str, str] = json.loads(JsonFormatter(always or {}).format(record))
    return found


def test_a_line_is_one_object_whatever_is_in_its_message() -> None:
    found = line('two lines\n"%s"', "quoted")
    assert found.pop("time").endswith("+00:00")
    assert found == {"level": "warning", "logger": "arctic", "message": 'two lines\n"quoted"'}


def test_a_workers_lines_name_what_it_works_for() -> None:
    assert line("hello", always=FIXED).items() >= FIXED.items()


def test_an_error_has_its_stack() -> None:
    try:
        raise ValueError("broken")
    except ValueError as error:
        found = line("failed", exc_info=(type(error), error, error.__traceback__))
    assert found["message"] == "failed"
    assert "ValueError: broken" in found["stack"]


async def test_lines_name_the_object_that_they_are_about_and_so_do_tasks_made_meanwhile() -> None:
    async def later() -> dict[str, str]:
        await asyncio.sleep(0)
        return line("from a task")

    async def work(name: str) -> dict[str, str]:
        with about("ArcticInference", "team", name):
            await asyncio.sleep(0)
            task = asyncio.create_task(later())
            return line("hello") | {"task": (await task)["name"]}

    found = await asyncio.gather(work("a"), work("b"))
    assert [(each["name"], each["task"]) for each in found] == [("a", "a"), ("b", "b")]
    assert "name" not in line("outside")
