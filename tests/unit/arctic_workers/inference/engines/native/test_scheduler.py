"""The scheduler with a stand-in for the model: the next token is a function of all tokens before it."""

from hypothesis import given, settings
from hypothesis import strategies as st

from arctic_workers.inference.engine import Request, Sampling
from arctic_workers.inference.engines.native.blocks import BlockManager
from arctic_workers.inference.engines.native.scheduler import LEAST_PIECE, Chunk, Scheduler
from arctic_workers.inference.engines.native.sequence import Sequence
from arctic_workers.inference.engines.native.window import Window

BLOCK = 4


def next_token(tokens: list[int]) -> int:
    return (sum((place + 1) * token for place, token in enumerate(tokens)) + len(tokens)) % 97


def expected(request: Request) -> list[int]:
    tokens = list(request.prompt)
    while len(tokens) - len(request.prompt) < request.sampling.max_tokens:
        tokens.append(next_token(tokens))
        if tokens[-1] in request.sampling.stop_tokens:
            break
    return tokens


class Cache:
    """Keeps what was written to each slot, and checks that all earlier positions are there when a chunk runs."""

    def __init__(self) -> None:
        self.slots: dict[tuple[int, int], tuple[Sequence, int, int]] = {}

    def run(self, chunk: Chunk) -> None:
        sequence, end = chunk.sequence, chunk.start + chunk.length
        for position in range(chunk.start, end):
            slot = (sequence.blocks[position // BLOCK], position % BLOCK)
            self.slots[slot] = (sequence, position, sequence.tokens[position])
        for position in range(end):
            slot = (sequence.blocks[position // BLOCK], position % BLOCK)
            assert self.slots[slot] == (sequence, position, sequence.tokens[position])


class Server:
    """Runs a scheduler with up to `depth` steps on their way, and checks it at each."""

    def __init__(self, blocks: int, budget: int, most: int, depth: int, window: Window | None = None) -> None:
        self.blocks = BlockManager(blocks, BLOCK)
        self.scheduler = Scheduler(self.blocks, token_budget=budget, max_sequences=most, ranks=depth, window=window)
        self.budget, self.most, self.depth = budget, most, depth
        self.cache = Cache() if window is None else WindowCache(window)
        self.in_flight: list[list[Chunk]] = []
        self.finished: list[Sequence] = []

    def turn(self, sequences: list[Sequence]) -> None:
        chunks = self.scheduler.schedule(self.depth - len(self.in_flight))
        assert sum(chunk.length for chunk in chunks) <= self.budget
        assert self.scheduler.running <= self.most
        assert len({id(chunk.sequence) for chunk in chunks}) == len(chunks)
        for chunk in chunks:
            self.cache.run(chunk)
        self.in_flight.append(chunks)
        if len(self.in_flight) >= self.depth:
            self.receive(self.in_flight.pop(0))
        held = [block for sequence in sequences for block in sequence.blocks]
        assert len(held) == len(set(held)) == self.blocks.count - self.blocks.free

    def receive(self, chunks: list[Chunk]) -> None:
        for chunk in chunks:
            sequence = chunk.sequence
            if chunk.samples and not sequence.ended and self.scheduler.update(sequence, next_token(sequence.tokens)):
                self.finished.append(sequence)


requests = st.builds(
    Request,
    prompt=st.lists(st.integers(0, 96), min_size=1, max_size=20).map(tuple),
    sampling=st.builds(
        Sampling, max_tokens=st.integers(1, 12), stop_tokens=st.frozensets(st.integers(0, 96), max_size=3)
    ),
)


@settings(max_examples=150, deadline=None)
@given(
    arrivals=st.lists(st.tuples(requests, st.integers(0, 10), st.none() | st.integers(0, 15)), min_size=1, max_size=12),
    blocks=st.integers(8, 24),
    budget=st.integers(1, 24),
    most=st.integers(1, 6),
    depth=st.integers(1, 3),
)
def test_every_request_ends_with_its_own_tokens_whatever_shares_its_steps(
    arrivals: list[tuple[Request, int, int | None]], blocks: int, budget: int, most: int, depth: int
) -> None:
    server = Server(blocks, budget, most, depth)
    sequences = [(Sequence(request), start, cancel) for request, start, cancel in arrivals]
    cancelled = []
    for now in range(5000):
        for sequence, start, cancel in sequences:
            if start == now:
                server.scheduler.add(sequence)
            if cancel is not None and start + cancel == now and not sequence.ended:
                server.scheduler.cancel(sequence)
                cancelled.append(sequence)
        server.turn([sequence for sequence, _, _ in sequences])
        if now > 25 and all(sequence.ended for sequence, _, _ in sequences):
            break
    assert all(sequence.ended for sequence, _, _ in sequences)
    assert server.blocks.free == server.blocks.count
    assert server.scheduler.running == server.scheduler.waiting == 0
    assert all(sequence.tokens == expected(sequence.request) for sequence in server.finished)
    assert len(server.finished) + len(cancelled) == len(sequences)


class WindowCache:
    """Keeps which position of which sequence was written to each slot, and checks that what a row sees is there."""

    def __init__(self, window: Window) -> None:
        self.window = window
        self.slots: dict[tuple[int, int], tuple[Sequence, int]] = {}

    def run(self, chunk: Chunk) -> None:
        sequence, end = chunk.sequence, chunk.start + chunk.length
        for position in range(chunk.start, end):
            self.slots[self.slot(sequence, position)] = (sequence, position)
        for position in range(chunk.start, end):
            first = self.window.first(position)
            for seen in (*range(min(self.window.sinks, first)), *range(first, position + 1)):
                assert self.slots[self.slot(sequence, seen)] == (sequence, seen)

    def slot(self, sequence: Sequence, position: int) -> tuple[int, int]:
        block = position // BLOCK
        place = block if block < self.window.sink_blocks(BLOCK) else block - sequence.dropped
        return sequence.blocks[place], position % BLOCK


@settings(max_examples=60, deadline=None)
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
)
def test_what_outgrows_its_window_keeps_its_blocks_and_ends(
    arrivals: list[tuple[int, int, int, int | None]],
    size: int,
    sinks: int,
    spare: int,
    budget: int,
    most: int,
    depth: int,
) -> None:
    window = Window(size, sinks)
    # Sequences that don't outgrow the window may have to make room for each other, with nothing to spare.
    server = Server(window.blocks(BLOCK) + spare, budget, most, depth, window)
    sequences = [
        (Sequence(Request(tuple(range(prompt)), Sampling(max_tokens=generate))), start, cancel)
        for prompt, generate, start, cancel in arrivals
    ]
    held: dict[Sequence, set[int]] = {}
    for now in range(20_000):
        for sequence, start, cancel in sequences:
            if start == now:
                server.scheduler.add(sequence)
            if cancel is not None and start + cancel == now and not sequence.ended:
                server.scheduler.cancel(sequence)
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


def test_what_outgrows_its_window_makes_no_room_though_it_is_the_youngest() -> None:
    window = Window(8, 4)
    blocks = BlockManager(window.blocks(BLOCK) + 4, BLOCK)
    scheduler = Scheduler(blocks, token_budget=32, max_sequences=8, window=window)
    old, young, endless = request(8, 4), request(4, 8), request(8, 10**9)
    for sequence in (old, young, endless):
        scheduler.add(sequence)
    assert lengths(scheduler.schedule()) == [(old, 8), (young, 4), (endless, 8)]
    assert blocks.free == 1
    for sequence in (old, young, endless):
        scheduler.update(sequence, 1)
    assert lengths(scheduler.schedule()) == [(old, 1), (endless, 1)]
    assert (scheduler.running, scheduler.waiting) == (2, 1)


def request(prompt: int, generate: int = 4) -> Sequence:
    return Sequence(Request(tuple(range(prompt)), Sampling(max_tokens=generate)))


def lengths(chunks: list[Chunk]) -> list[tuple[Sequence, int]]:
    return [(chunk.sequence, chunk.length) for chunk in chunks]


def test_prompts_fill_what_generating_sequences_leave_of_the_budget() -> None:
    scheduler = Scheduler(BlockManager(64, BLOCK), token_budget=10, max_sequences=8)
    first, second, third = request(6), request(17), request(2)
    for sequence in (first, second, third):
        scheduler.add(sequence)
    assert lengths(scheduler.schedule()) == [(first, 6), (second, 4)]
    scheduler.update(first, 1)
    assert lengths(scheduler.schedule()) == [(first, 1), (second, 9)]
    scheduler.update(first, 1)
    assert lengths(scheduler.schedule()) == [(first, 1), (second, 4), (third, 2)]


@given(count=st.integers(1, 40), ranks=st.integers(1, 4))
def test_sequences_that_generate_are_shared_out_over_the_steps_on_their_way(count: int, ranks: int) -> None:
    scheduler = Scheduler(BlockManager(64, BLOCK), token_budget=64, max_sequences=64, ranks=ranks)
    for _ in range(count):
        scheduler.add(request(1, 3))
    # All at once, as after a prompt that all waited for.
    for chunk in scheduler.schedule():
        scheduler.update(chunk.sequence, 1)
    steps = [scheduler.schedule(ranks - begun) for begun in range(ranks)]
    assert sum(map(len, steps)) == count
    assert max(map(len, steps)) == -(-count // ranks)
    assert scheduler.schedule() == []
    for chunk in steps[0]:
        scheduler.update(chunk.sequence, 1)
    assert {id(chunk.sequence) for chunk in scheduler.schedule()} == {id(chunk.sequence) for chunk in steps[0]}


def test_prompts_are_shared_out_over_the_ranks_in_pieces_that_are_worth_it() -> None:
    scheduler = Scheduler(BlockManager(256, BLOCK), token_budget=128, max_sequences=8, ranks=2)
    first, second = request(150), request(50)
    scheduler.add(first)
    scheduler.add(second)
    assert lengths(scheduler.schedule(2)) == [(first, 100)]
    assert lengths(scheduler.schedule(1)) == [(first, 50), (second, 50)]
    short = request(LEAST_PIECE)
    scheduler.add(short)
    assert lengths(scheduler.schedule(2)) == [(short, LEAST_PIECE)]


def test_the_youngest_makes_room_and_comes_back_before_those_that_wait() -> None:
    scheduler = Scheduler(BlockManager(4, BLOCK), token_budget=32, max_sequences=8)
    old, young, later = request(8, 8), request(8, 8), request(4, 8)
    for sequence in (old, young, later):
        scheduler.add(sequence)
    assert lengths(scheduler.schedule()) == [(old, 8), (young, 8)]
    scheduler.update(old, 1)
    scheduler.update(young, 1)
    assert lengths(scheduler.schedule()) == [(old, 1)]
    assert (scheduler.running, scheduler.waiting) == (1, 2)
    for _ in range(7):
        if scheduler.update(old, 1) is None:
            scheduler.schedule()
    assert lengths(scheduler.schedule())[0] == (young, 9)


def test_a_shared_block_is_free_when_the_last_table_lets_it_go() -> None:
    manager = BlockManager(3, BLOCK)
    table: list[int] = []
    assert manager.grow(table, 8)
    other = manager.share(table)
    manager.release(table)
    assert manager.free == 1
    manager.release(other)
    assert manager.free == 3
    assert not manager.grow(table, 13)
    assert table == []
