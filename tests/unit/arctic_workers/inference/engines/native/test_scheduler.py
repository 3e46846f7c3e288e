"""The scheduler with a stand-in for the model: the next token is a function of all tokens before it."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arctic_workers.inference.engine import Request, Sampling
from arctic_workers.inference.engines.native.blocks import BlockManager
from arctic_workers.inference.engines.native.budget import TokenBudget
from arctic_workers.inference.engines.native.scheduler import LEAST_PIECE, Chunk, Scheduler
from arctic_workers.inference.engines.native.sequence import Sequence
from arctic_workers.inference.engines.native.suffix import Drafter
from arctic_workers.inference.engines.native.window import Window

BLOCK = 4


def next_token(tokens: list[int]) -> int:
    """Of few tokens, so that much is written again, by proposals too."""
    return (sum((place + 1) * token for place, token in enumerate(tokens[-3:])) + len(tokens) // 16) % 5


def expected(request: Request) -> list[int]:
    tokens = list(request.prompt)
    while len(tokens) - len(request.prompt) < request.sampling.max_tokens:
        tokens.append(next_token(tokens))
        if tokens[-1] in request.sampling.stop_tokens:
            break
    return tokens


class Cache:
    """Keeps what was written to each slot, and checks that all earlier tokens are there when a chunk runs."""

    def __init__(self) -> None:
        self.slots: dict[tuple[int, int], tuple[bytes | int, int, tuple[int, ...]]] = {}

    def run(self, chunk: Chunk) -> list[int]:
        """Return the tokens that the chunk samples."""
        sequence, end = chunk.sequence, chunk.start + chunk.length
        assert len(chunk.tokens) == chunk.length
        tokens = [*sequence.tokens[: chunk.start], *chunk.tokens]
        # Keys and values are a function of all tokens so far; who shares none has its own.
        whose = sequence.salt if sequence.shares else id(sequence)
        for position in range(end):
            slot = (sequence.blocks[position // BLOCK], position % BLOCK)
            wanted = (whose, position, tuple(tokens[: position + 1]))
            if position >= chunk.start:
                self.slots[slot] = wanted
            assert self.slots[slot] == wanted
        return [next_token(tokens[: end - chunk.draws + place + 1]) for place in range(chunk.draws)]


class Server:
    """Runs a scheduler with up to `depth` steps on their way, and checks it at each."""

    def __init__(
        self, blocks: int, budget: int, most: int, depth: int, *, drafts: bool = False, window: Window | None = None
    ) -> None:
        self.blocks = BlockManager(blocks, BLOCK)
        limit = TokenBudget(budget)
        drafter = Drafter(limit.times) if drafts else None
        self.times = limit.times
        self.scheduler = Scheduler(self.blocks, limit, max_sequences=most, ranks=depth, window=window, drafter=drafter)
        self.budget, self.most, self.depth = budget, most, depth
        self.cache = Cache() if window is None else WindowCache(window)
        self.in_flight: list[list[tuple[Chunk, list[int]]]] = []
        self.finished: list[Sequence] = []

    def turn(self, sequences: list[Sequence]) -> None:
        chunks = self.scheduler.schedule(self.depth - len(self.in_flight))
        assert sum(chunk.length for chunk in chunks) <= self.budget
        assert self.scheduler.running <= self.most
        assert len({id(chunk.sequence) for chunk in chunks}) == len(chunks)
        assert not any(chunk.sequence.held for chunk in chunks)
        if not chunks and not any(self.in_flight):
            assert self.scheduler.schedule(self.depth - len(self.in_flight)) == [], "or nobody would ask again"
        if chunks:
            self.times.observe(sum(chunk.length for chunk in chunks), 1.0)  # proposals cost nothing
        self.in_flight.append([(chunk, self.cache.run(chunk)) for chunk in chunks])
        if len(self.in_flight) >= self.depth:
            self.receive(self.in_flight.pop(0))
        held = sum(len(sequence.blocks) for sequence in sequences)
        assert self.blocks.faults(held) == []

    def receive(self, results: list[tuple[Chunk, list[int]]]) -> None:
        for chunk, tokens in results:
            if not chunk.samples or chunk.sequence.ended:
                continue
            before = chunk.sequence.length
            taken, reason = self.scheduler.update(chunk, tokens)
            assert chunk.sequence.length == before + taken
            if reason is not None:
                self.finished.append(chunk.sequence)


requests = st.builds(
    Request,
    prompt=st.lists(st.integers(0, 4), min_size=1, max_size=20).map(tuple),
    sampling=st.builds(
        Sampling, max_tokens=st.integers(1, 16), stop_tokens=st.frozensets(st.integers(0, 40), max_size=3)
    ),
    priority=st.integers(0, 2),
    caller=st.sampled_from([b"one", b"other"]),
)


@settings(max_examples=120)
@given(
    arrivals=st.lists(st.tuples(requests, st.integers(0, 10), st.none() | st.integers(0, 15)), min_size=1, max_size=12),
    blocks=st.integers(9, 24),
    budget=st.integers(1, 24),
    most=st.integers(1, 6),
    depth=st.integers(1, 3),
    shares=st.booleans(),
    drafts=st.booleans(),
)
def test_every_request_ends_with_its_own_tokens_whatever_shares_its_steps(
    arrivals: list[tuple[Request, int, int | None]],
    blocks: int,
    budget: int,
    most: int,
    depth: int,
    shares: bool,
    drafts: bool,
) -> None:
    server = Server(blocks, budget, most, depth, drafts=drafts)
    sequences = [
        (Sequence(request, salt=request.caller, shares=shares), start, cancel) for request, start, cancel in arrivals
    ]
    cancelled = []
    for now in range(5000):
        for sequence, start, cancel in sequences:
            if start == now:
                server.scheduler.add(sequence)
            if cancel is not None and start + cancel == now and not sequence.ended:
                held = len(sequence.blocks)
                server.scheduler.cancel(sequence)
                assert not sequence.blocks
                assert held == 0 or server.blocks.free > 0
                cancelled.append(sequence)
        server.turn([sequence for sequence, _, _ in sequences])
        if now > 25 and all(sequence.ended for sequence, _, _ in sequences):
            break
    assert all(sequence.ended for sequence, _, _ in sequences)
    assert server.blocks.free == server.blocks.count
    assert server.blocks.faults() == []
    assert server.scheduler.running == server.scheduler.waiting == 0
    assert all(sequence.tokens == expected(sequence.request) for sequence in server.finished)
    assert len(server.finished) + len(cancelled) == len(sequences)


class WindowCache:
    """Keeps which position of which sequence was written to each slot, and checks that what a row sees is there."""

    def __init__(self, window: Window) -> None:
        self.window = window
        self.slots: dict[tuple[int, int], tuple[bytes | int, int]] = {}

    def run(self, chunk: Chunk) -> list[int]:
        """Return the tokens that the chunk samples: a token is a function of its position."""
        sequence, end = chunk.sequence, chunk.start + chunk.length
        assert not (sequence.outgrows and (sequence.shares or chunk.draft))
        whose = sequence.salt if sequence.shares else id(sequence)
        for position in range(chunk.start, end):
            self.slots[self.slot(sequence, position)] = (whose, position)
        for position in range(chunk.start, end):
            first = self.window.first(position)
            for seen in (*range(min(self.window.sinks, first)), *range(first, position + 1)):
                assert self.slots[self.slot(sequence, seen)] == (whose, seen)
        return [position % 7 for position in range(end - chunk.draws + 1, end + 1)]

    def slot(self, sequence: Sequence, position: int) -> tuple[int, int]:
        block = position // BLOCK
        place = block if block < self.window.sink_blocks(BLOCK) else block - sequence.dropped
        return sequence.blocks[place], position % BLOCK


@settings(max_examples=60)
@given(
    arrivals=st.lists(
        st.tuples(st.integers(1, 700), st.integers(1, 400), st.integers(0, 30), st.none() | st.integers(0, 15)),
        min_size=1,
        max_size=5,
    ),
    size=st.integers(1, 40),
    sinks=st.integers(0, 9),
    spare=st.integers(0, 90),
    budget=st.integers(1, 500),
    most=st.integers(1, 4),
    depth=st.integers(1, 3),
    shares=st.booleans(),
    drafts=st.booleans(),
    holds=st.booleans(),
)
def test_what_outgrows_its_window_keeps_its_blocks_and_ends(
    arrivals: list[tuple[int, int, int, int | None]],
    size: int,
    sinks: int,
    spare: int,
    budget: int,
    most: int,
    depth: int,
    shares: bool,
    drafts: bool,
    holds: bool,
) -> None:
    window = Window(size, sinks)
    # Sequences that don't outgrow the window may have to make room for each other, with nothing to spare.
    server = Server(window.blocks(BLOCK) + spare, budget, most, depth, drafts=drafts, window=window)
    sequences = [
        (
            Sequence(Request(tuple(place % 7 for place in range(prompt)), Sampling(generate)), shares=shares),
            start,
            cancel,
        )
        for prompt, generate, start, cancel in arrivals
    ]
    held: dict[Sequence, set[int]] = {}
    for now in range(20_000):
        for sequence, start, cancel in sequences:
            if start == now:
                server.scheduler.add(sequence)
            if cancel is not None and start + cancel == now and not sequence.ended:
                server.scheduler.cancel(sequence)
        for index, (sequence, _, _) in enumerate(sequences):
            sequence.held = holds and sequence.outgrows is not None and sequence.generated > 0 and now // 9 % 4 > index
        server.turn([sequence for sequence, _, _ in sequences])
        for sequence, _, _ in sequences:
            if sequence.outgrows and sequence.blocks:
                assert held.setdefault(sequence, set(sequence.blocks)) == set(sequence.blocks)
                assert len(sequence.tokens) <= max(len(sequence.request.prompt), 1) + 1
                assert sequence.generated < 2 or len(sequence.tokens) <= depth + 1
        if now > 45 and all(sequence.ended for sequence, _, _ in sequences):
            break
    assert all(sequence.ended for sequence, _, _ in sequences)
    assert server.blocks.free == server.blocks.count
    assert all(sequence.generated == sequence.request.sampling.max_tokens for sequence in server.finished)


def request(prompt: int, generate: int = 4, priority: int = 0, *, shares: bool = False, salt: bytes = b"") -> Sequence:
    asked = Request(tuple(range(prompt)), Sampling(max_tokens=generate), priority)
    return Sequence(asked, salt=salt, shares=shares)


def lengths(chunks: list[Chunk]) -> list[tuple[Sequence, int]]:
    return [(chunk.sequence, chunk.length) for chunk in chunks]


def scheduler_of(
    blocks: int, budget: int = 64, most: int = 8, *, ranks: int = 1, window: Window | None = None
) -> Scheduler:
    return Scheduler(BlockManager(blocks, BLOCK), TokenBudget(budget), max_sequences=most, ranks=ranks, window=window)


def step(scheduler: Scheduler) -> list[tuple[Sequence, int]]:
    """Run a step in which every sampled token is 1."""
    chunks = scheduler.schedule()
    for chunk in chunks:
        if chunk.samples:
            scheduler.update(chunk, [1])
    return lengths(chunks)


def test_prompts_fill_what_generating_sequences_leave_of_the_budget() -> None:
    scheduler = scheduler_of(64, budget=10)
    first, second, third = request(6), request(17), request(2)
    for sequence in (first, second, third):
        scheduler.add(sequence)
    assert step(scheduler) == [(first, 6), (second, 4)]
    assert step(scheduler) == [(first, 1), (second, 9)]
    assert step(scheduler) == [(first, 1), (second, 4), (third, 2)]


def test_what_outgrows_its_window_makes_no_room_though_it_is_the_youngest() -> None:
    window = Window(8, 4)
    scheduler = scheduler_of(window.blocks(BLOCK) + 4, window=window)
    old, young, endless = request(8, 4), request(4, 8), request(8, 10**9)
    for sequence in (old, young, endless):
        scheduler.add(sequence)
    assert step(scheduler) == [(old, 8), (young, 4), (endless, 8)]
    assert step(scheduler) == [(old, 1), (endless, 1)]
    assert (scheduler.running, scheduler.waiting) == (2, 1)


def test_the_first_makes_room_where_all_others_keep_theirs_for_good() -> None:
    window = Window(8, 4)
    scheduler = scheduler_of(7 + 2, window=window)  # the one that outgrows will need seven
    first, outgrowing = request(8, 4), request(8, 20)
    scheduler.add(first)
    scheduler.add(outgrowing)
    assert step(scheduler) == [(first, 8), (outgrowing, 8)]
    while not outgrowing.ended:
        assert step(scheduler) == [(outgrowing, 1)]
    assert step(scheduler) == [(first, 9)]


def test_what_is_held_keeps_its_blocks_and_nobody_else_from_going_on() -> None:
    window = Window(8, 4)
    scheduler = scheduler_of(7 + 2, window=window)
    first, held = request(8, 4), request(8, 20)
    scheduler.add(first)
    scheduler.add(held)
    assert step(scheduler) == [(first, 8), (held, 8)]
    held.held = True
    early = request(4, 2, -1)
    scheduler.add(early)
    assert step(scheduler) == [(early, 4)], "in the place of the first, which lacks a block"
    assert step(scheduler) == [(early, 1)]
    assert step(scheduler) == []
    held.held = False
    assert step(scheduler) == [(held, 1)]


@given(count=st.integers(1, 40), ranks=st.integers(1, 4))
def test_sequences_that_generate_are_shared_out_over_the_steps_on_their_way(count: int, ranks: int) -> None:
    scheduler = scheduler_of(64, most=64, ranks=ranks)
    for _ in range(count):
        scheduler.add(request(1, 3))
    # All at once, as after a prompt that all waited for.
    step(scheduler)
    steps = [scheduler.schedule(ranks - begun) for begun in range(ranks)]
    assert sum(map(len, steps)) == count
    assert max(map(len, steps)) == -(-count // ranks)
    assert scheduler.schedule() == []
    for chunk in steps[0]:
        scheduler.update(chunk, [1])
    assert {id(chunk.sequence) for chunk in scheduler.schedule()} == {id(chunk.sequence) for chunk in steps[0]}


def test_prompts_are_shared_out_over_the_ranks_in_pieces_that_are_worth_it() -> None:
    scheduler = scheduler_of(256, budget=128, ranks=2)
    first, second = request(150), request(50)
    scheduler.add(first)
    scheduler.add(second)
    assert lengths(scheduler.schedule(2)) == [(first, 100)]
    assert lengths(scheduler.schedule(1)) == [(first, 50), (second, 50)]
    short = request(LEAST_PIECE)
    scheduler.add(short)
    assert lengths(scheduler.schedule(2)) == [(short, LEAST_PIECE)]


def test_the_target_holds_while_the_tokens_that_wait_for_it_are_on_their_way() -> None:
    budget = TokenBudget(256, 0.1)
    budget.times.observe(64, 0.1)
    scheduler = Scheduler(BlockManager(256, BLOCK), budget, max_sequences=8, ranks=2)
    talking, reading = request(4), request(300)
    scheduler.add(talking)
    step(scheduler)
    scheduler.add(reading)
    assert lengths(scheduler.schedule(2)) == [(talking, 1), (reading, 63)]
    assert lengths(scheduler.schedule(1)) == [(reading, 64)]


def test_who_makes_room_comes_back_before_those_that_came_later() -> None:
    scheduler = scheduler_of(4)
    old, young, later = request(8, 8), request(8, 8), request(4, 8)
    for sequence in (old, young, later):
        scheduler.add(sequence)
    assert step(scheduler) == [(old, 8), (young, 8)]
    assert step(scheduler) == [(old, 1)]
    assert (scheduler.running, scheduler.waiting) == (1, 2)
    while not old.ended:
        step(scheduler)
    assert step(scheduler)[0] == (young, 9)


def test_room_is_made_by_the_one_with_the_least_to_compute_again_but_never_by_the_first() -> None:
    scheduler = scheduler_of(8)
    first, long, short = request(4, 16), request(16, 8), request(8, 8)
    for sequence in (first, long, short):
        scheduler.add(sequence)
    step(scheduler)
    assert step(scheduler) == [(first, 1), (long, 1)]
    scheduler = scheduler_of(8)
    first, short, long = request(4, 16), request(8, 8), request(16, 8)
    for sequence in (first, short, long):
        scheduler.add(sequence)
    step(scheduler)
    assert step(scheduler) == [(first, 1), (long, 1)]


def test_lower_priorities_come_first_and_higher_ones_make_room_first() -> None:
    scheduler = scheduler_of(8, most=3)
    late, middle, early = request(4, 8, 5), request(16, 8), request(8, 8, -1)
    for sequence in (late, middle, early):
        scheduler.add(sequence)
    assert step(scheduler) == [(early, 8), (middle, 16), (late, 4)]
    assert step(scheduler) == [(early, 1), (middle, 1)]
    assert scheduler.waiting == 1


def test_a_prompt_of_an_earlier_priority_goes_before_the_rest_of_one_that_came_first() -> None:
    scheduler = scheduler_of(64, budget=8)
    low, high, same = request(64, 4, 5), request(4, 4, 0), request(4, 4, 5)
    scheduler.add(low)
    assert step(scheduler) == [(low, 8)]
    scheduler.add(same)
    assert step(scheduler) == [(low, 8)]
    scheduler.add(high)
    assert step(scheduler) == [(high, 4), (low, 4)]
    assert step(scheduler) == [(high, 1), (low, 7)]
    assert scheduler.waiting == 1


def test_who_generates_keeps_its_token_whatever_comes_first() -> None:
    scheduler = scheduler_of(64, budget=8)
    talking, high = request(4, 8, 5), request(20, 4, 0)
    scheduler.add(talking)
    step(scheduler)
    scheduler.add(high)
    assert step(scheduler) == [(talking, 1), (high, 7)]


def test_a_prompt_that_comes_first_waits_while_there_is_no_room_for_it() -> None:
    scheduler = scheduler_of(5, budget=8)
    low, high = request(16, 2, 5), request(8, 2, 0)
    scheduler.add(low)
    step(scheduler)
    scheduler.add(high)
    assert step(scheduler) == [(low, 8)]


def test_a_prompt_that_begins_alike_computes_only_what_differs() -> None:
    scheduler = scheduler_of(32)
    first, same, longer = (request(12, shares=True), request(12, shares=True), request(19, shares=True))
    scheduler.add(first)
    assert step(scheduler) == [(first, 12)]
    scheduler.add(same)
    scheduler.add(longer)
    # At least one token is computed, since one is to be sampled from it; two blocks are left of the three.
    assert step(scheduler) == [(first, 1), (same, 4), (longer, 7)]
    assert same.blocks[:2] == first.blocks[:2] == longer.blocks[:2]
    # All have computed the third block for themselves; one of them is enough.
    step(scheduler)
    assert same.blocks[:3] == first.blocks[:3] == longer.blocks[:3]


@pytest.mark.parametrize(
    "stranger",
    [
        lambda: request(12, shares=True, salt=b"other"),
        lambda: request(12),
        lambda: Sequence(Request((9, *range(1, 12)), Sampling(4)), shares=True),
    ],
)
def test_nothing_is_shared_with_another_salt_or_another_beginning(stranger: Callable[[], Sequence]) -> None:
    scheduler = scheduler_of(32)
    scheduler.add(request(12, 1, shares=True))
    step(scheduler)
    other = stranger()
    scheduler.add(other)
    assert step(scheduler) == [(other, 12)]


def test_who_lost_its_blocks_finds_those_that_nobody_took() -> None:
    scheduler = scheduler_of(6)
    old, young = request(8, 5, shares=True), Sequence(Request((9,) * 14, Sampling(4)), shares=True)
    scheduler.add(old)
    scheduler.add(young)
    assert step(scheduler) == [(old, 8), (young, 14)]
    assert step(scheduler) == [(old, 1)]
    while not old.ended:
        step(scheduler)
    # Fifteen tokens are known, and a block that was not full has been enough for the other.
    [(sequence, computed)] = step(scheduler)
    assert sequence is young
    assert computed == 3


def test_proposals_that_prove_right_come_at_once_and_what_was_wrong_is_computed_again() -> None:
    server = Server(32, 64, 4, 1, drafts=True)
    asked = Request((0, 1, 2, 3) * 4, Sampling(max_tokens=80))
    sequence = Sequence(asked)
    server.scheduler.add(sequence)
    steps = 0
    while not sequence.ended:
        server.turn([sequence])
        steps += 1
    assert sequence.tokens == expected(asked)
    assert steps < 60


def test_the_block_that_was_unused_for_longest_is_taken_first_and_a_beginning_last() -> None:
    manager = BlockManager(4, BLOCK)
    tables: list[list[int]] = [[], []]
    for table, first in zip(tables, (0, 100), strict=True):
        assert manager.grow(table, 8)
        link = manager.keep(table, 0, b"", tuple(range(first, first + 4)))
        manager.keep(table, 1, link, tuple(range(first + 4, first + 8)))
    old, new = (list(table) for table in tables)
    manager.release(tables[0])
    manager.release(tables[1])
    assert manager.free == 4
    table: list[int] = []
    assert manager.grow(table, 4)
    assert table == [old[1]]
    assert manager.find(b"", range(9)) == ([old[0]], [0])
    assert manager.find(b"", range(100, 109))[0] == new
    assert manager.faults(1) == []


def test_a_shared_block_is_free_when_the_last_table_lets_it_go() -> None:
    manager = BlockManager(3, BLOCK)
    table: list[int] = []
    other: list[int] = []
    assert manager.grow(table, 8)
    manager.keep(table, 0, b"", (0, 1, 2, 3))
    assert manager.start(other, manager.find(b"", range(5))[0], 5)
    assert other[0] == table[0]
    assert manager.free == 0
    manager.release(table)
    assert manager.free == 1
    manager.release(other)
    assert manager.free == 3
    assert not manager.grow(table, 13)
    assert table == []


def test_a_block_that_nobody_gave_back_is_seen() -> None:
    manager = BlockManager(3, BLOCK)
    table: list[int] = []
    manager.grow(table, 5)
    assert manager.faults(2) == []
    table.clear()
    assert manager.faults() == ["2 blocks are referred to, and 0 held"]
    manager.reset()
    assert manager.faults() == []
    assert manager.free == 3
