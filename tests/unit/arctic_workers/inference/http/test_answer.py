"""Several answers of one request, made at once."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from arctic_workers.inference.http.answer import Piece, together


async def test_answers_wait_for_whoever_reads_them_slowly() -> None:
    made = 0

    async def endless() -> AsyncGenerator[Piece, None]:
        nonlocal made
        while True:
            made += 1
            await asyncio.sleep(0)
            yield Piece("x", (), 1, None)

    async with aclosing(together([endless(), endless()], most=2)) as pieces:
        await anext(pieces)
        for _ in range(100):
            await asyncio.sleep(0)
        assert made < 10
        for _ in range(20):
            await anext(pieces)
        assert made >= 20
