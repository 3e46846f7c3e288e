"""Work for large requests, which would hold up all other answers on the event loop."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")

LARGE = 8192
"""Characters of prompts, bytes of a request, or tokens and candidates of an answer, which take so long to be read or
written that other answers would stop."""


async def beside_others(size: int, work: Callable[[], Result]) -> Result:
    """Do work on so much; where it is large, without holding up other answers."""
    return work() if size < LARGE else await asyncio.to_thread(work)
