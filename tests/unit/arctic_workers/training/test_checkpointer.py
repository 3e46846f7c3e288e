import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from arctic_api.world import CORRECTABLE
from arctic_workers.training.checkpoint import checkpointer as module
from arctic_workers.training.checkpoint.checkpointer import Checkpointer, Position
from arctic_workers.training.checkpoint.store import CheckpointStore
from arctic_workers.training.checkpoint.zero import KINDS, Piece, split
from arctic_workers.training.errors import Fenced, Refused

SHAPES = {"a": [3, 5], "b": [7], "experts.0": [2, 2], "experts.1": [2, 2]}
FULL = {
    (kind, name): torch.randn(*shape, generator=torch.Generator().manual_seed(hash((kind, name)) % 1000))
    for kind in KINDS
    for name, shape in SHAPES.items()
}


def pieces_of(cuts: list[float], blank: bool) -> list[list[Piece]]:
    """Share all tensors out over ranks whose ranges end at `cuts` of the whole; zeros in place of values if blank."""
    names = list(SHAPES)
    flat = {kind: torch.cat([FULL[kind, name].flatten() for name in names]) * (0 if blank else 1) for kind in KINDS}
    sizes = [FULL["master", name].numel() for name in names]
    borders = [round(cut * sum(sizes)) for cut in sorted(cuts)]
    ranks: list[list[Piece]] = []
    for low, high in zip([0, *borders], [*borders, sum(sizes)], strict=True):
        pieces, offset = [], 0
        for name, size in zip(names, sizes, strict=True):
            first, last = max(low, offset), min(high, offset + size)
            if first < last:
                state = {kind: flat[kind][first:last].clone() for kind in KINDS}
                pieces.append(Piece(name, first - offset, state))
            offset += size
        ranks.append(pieces)
    return ranks


def world_of(folder: Path, ranks: int, epoch: int = 1, keep: int = 2) -> list[Checkpointer]:
    CheckpointStore(folder, epoch).claim("uid")
    return [
        Checkpointer(CheckpointStore(folder, epoch), rank, ranks, SHAPES, keep, lambda step: f"file:///{step}")
        for rank in range(ranks)
    ]


def write(world: list[Checkpointer], pieces: list[list[Piece]], step: int = 4) -> None:
    position = Position(step, step * 10, "general", False, {"n": step})
    for checkpointer, own in zip(world, pieces, strict=True):
        checkpointer.start(own, position)
    for checkpointer in reversed(world):
        checkpointer.finish()


def newest(world: list[Checkpointer]) -> Path | None:
    """Let all ranks look for the newest whole checkpoint at once, agreeing through a barrier as collectives do."""
    agree, candidates = _agreement(len(world)), world[0]._store.candidates()
    with ThreadPoolExecutor(len(world)) as pool:
        found = {future.result() for future in [pool.submit(c.newest_whole, candidates, agree) for c in world]}
    assert len(found) == 1
    return found.pop()


def _agreement(ranks: int) -> Callable[[bool], bool]:
    import threading

    votes: list[bool] = []
    barrier = threading.Barrier(ranks)

    def agree(yes: bool) -> bool:
        votes.append(yes)
        barrier.wait(20)
        verdict = all(votes[-ranks:])
        barrier.wait(20)
        return verdict

    return agree


cuts = st.lists(st.floats(0, 1), max_size=4)


@settings(max_examples=20)
@given(written=cuts, read=cuts)
def test_a_world_of_any_shape_reads_what_another_wrote(
    tmp_path_factory: pytest.TempPathFactory, written: list[float], read: list[float]
) -> None:
    folder = tmp_path_factory.mktemp("run") / "r"
    write(world_of(folder, len(written) + 1), pieces_of(written, blank=False))
    world = world_of(folder, len(read) + 1, epoch=2)
    found = newest(world)
    assert found is not None
    for checkpointer, blank, expected in zip(
        world, pieces_of(read, blank=True), pieces_of(read, blank=False), strict=True
    ):
        manifest = checkpointer.read(found, blank)
        assert (manifest.step, manifest.tokens, manifest.progress) == (4, 40, {"n": 4})
        for piece, wanted in zip(blank, expected, strict=True):
            assert all(torch.equal(piece.state[kind], wanted.state[kind]) for kind in KINDS)


def test_the_state_is_that_of_the_moment_it_was_started(tmp_path: Path) -> None:
    world = world_of(tmp_path / "r", 1)
    pieces = pieces_of([], blank=False)
    world[0].start(pieces[0], Position(1, 10, "general", False, {}))
    for piece in pieces[0]:
        piece.state["master"].fill_(0)
    world[0].finish()
    blank = pieces_of([], blank=True)
    found = newest(world)
    assert found is not None
    world[0].read(found, blank[0])
    assert torch.equal(blank[0][0].state["master"], FULL["master", "a"].flatten())


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[:200] + bytes([b[200] ^ 1]) + b[201:]])
def test_a_damaged_newest_checkpoint_is_passed_over_for_the_one_before(
    tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    world = world_of(tmp_path / "r", 2)
    pieces = pieces_of([0.5], blank=False)
    for step in (1, 2):
        write(world, pieces, step)
    shard = tmp_path / "r" / "checkpoints" / CheckpointStore.name(2) / module.shard_name(1, 2)
    shard.write_bytes(damage(shard.read_bytes()))
    assert newest(world) == tmp_path / "r" / "checkpoints" / CheckpointStore.name(1)


@pytest.mark.parametrize("next_step", [2, 4, 6])
def test_after_a_fall_back_new_checkpoints_stay_and_the_damaged_ones_go(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, next_step: int
) -> None:
    world = world_of(tmp_path / "r", 1, keep=3)
    pieces = pieces_of([], blank=False)
    for step in (1, 3, 4):
        write(world, pieces, step)
    folder = tmp_path / "r" / "checkpoints"
    for step in (3, 4):
        (folder / CheckpointStore.name(step) / module.shard_name(0, 1)).write_bytes(b"damaged")
    world = world_of(tmp_path / "r", 1, epoch=2)
    assert newest(world) == folder / CheckpointStore.name(1)
    shard = module.shard_name(0, 1)
    what = f"{shard} has 7 bytes of {(folder / CheckpointStore.name(1) / shard).stat().st_size}"
    assert [record.args for record in caplog.records] == [
        (folder / CheckpointStore.name(step), what) for step in (4, 3)
    ]
    write(world, pieces, next_step)
    assert sorted(path.name for path in folder.iterdir()) == [CheckpointStore.name(step) for step in (1, next_step)]
    assert newest(world) == folder / CheckpointStore.name(next_step)


def test_a_rank_that_falls_asleep_once_its_shard_is_there_finds_it_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = world_of(tmp_path / "r", 2)
    committed = tmp_path / "r" / "checkpoints" / CheckpointStore.name(4)
    replace, deadline = Path.replace, time.monotonic() + 20

    def sleepily(self: Path, target: Path) -> Path:
        replaced = replace(self, target)
        while target.name == "shard-00001-of-00002.json" and not committed.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        return replaced

    monkeypatch.setattr(Path, "replace", sleepily)
    write(world, pieces_of([0.5], blank=False))
    assert committed.exists()


def test_a_run_whose_checkpoints_are_all_damaged_is_refused_not_begun_again(tmp_path: Path) -> None:
    world = world_of(tmp_path / "r", 1)
    assert newest(world) is None
    write(world, pieces_of([], blank=False))
    (tmp_path / "r" / "checkpoints" / CheckpointStore.name(4) / "manifest.json").unlink()
    with pytest.raises(Refused, match="all 1 checkpoints"):
        newest(world)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    write(world_of(tmp_path / "r", 1), pieces_of([], blank=False))
    other = Checkpointer(CheckpointStore(tmp_path / "r", 1), 0, 1, SHAPES | {"b": [8]}, 1, str)
    with pytest.raises(Refused, match="another shape") as refused:
        other.read(tmp_path / "r" / "checkpoints" / CheckpointStore.name(4), [])
    assert refused.value.reason in CORRECTABLE


def test_a_checkpoint_that_lacks_a_tensor_is_refused_as_damaged_which_no_edit_mends(tmp_path: Path) -> None:
    world = world_of(tmp_path / "r", 1)
    [pieces] = pieces_of([], blank=False)
    write(world, [pieces[1:]])
    with pytest.raises(Refused, match=r"the checkpoint lacks 15 elements of the .* of a$") as refused:
        world[0].read(tmp_path / "r" / "checkpoints" / CheckpointStore.name(4), [pieces[0]])
    assert refused.value.reason == "CheckpointDamaged"


def test_a_rank_that_writes_nothing_keeps_the_checkpoint_from_being_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PEERS_TIMEOUT", 0.2)
    world = world_of(tmp_path / "r", 2)
    world[0].start(pieces_of([0.5], blank=False)[0], Position(1, 1, "general", False, {}))
    with pytest.raises(TimeoutError, match="rank 1 wrote no shard"):
        world[0].finish()
    assert newest(world) is None


def test_a_fenced_attempt_stops_at_its_next_checkpoint(tmp_path: Path) -> None:
    old = world_of(tmp_path / "r", 2)
    old[0].start(pieces_of([0.5], blank=False)[0], Position(1, 1, "general", False, {}))
    world_of(tmp_path / "r", 2, epoch=2)
    with pytest.raises(Fenced):
        old[0].finish()
    with pytest.raises(Fenced):
        old[0].check()


def test_random_state_comes_back_in_a_world_of_the_same_size(tmp_path: Path) -> None:
    world = world_of(tmp_path / "r", 1)
    torch.manual_seed(5)
    write(world, pieces_of([], blank=False))
    expected = torch.rand(3)
    torch.manual_seed(6)
    found = newest(world)
    assert found is not None
    world[0].read(found, [])
    assert torch.equal(torch.rand(3), expected)


@given(each=st.integers(1, 9), count=st.integers(1, 5), ends=st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted))
def test_a_range_of_stacked_tensors_is_cut_at_their_borders(each: int, count: int, ends: list[float]) -> None:
    names = [f"t{i}" for i in range(count)]
    low, high = (round(end * each * count) for end in ends)
    stacked = torch.arange(each * count)
    parts: list[Tensor] = []
    for name, first, start, end in split(low, high, each, names):
        tensor = stacked.view(count, each)[names.index(name)]
        assert torch.equal(tensor[first : first + end - start], stacked[start:end])
        parts.append(stacked[start:end])
    assert torch.equal(torch.cat(parts) if parts else stacked[:0], stacked[low:high])
