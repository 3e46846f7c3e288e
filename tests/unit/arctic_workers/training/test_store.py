import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from arctic_workers.training.checkpoint import store as module
from arctic_workers.training.checkpoint.store import CheckpointStore, Manifest, damage
from arctic_workers.training.errors import Fenced, Refused, StoreFull
from arctic_workers.training.files import sha256


def manifest_of(step: int, epoch: int, files: dict[str, Path], stage_end: bool = False) -> Manifest:
    return Manifest(
        step=step,
        tokens=step * 10,
        stage="s",
        stage_end=stage_end,
        epoch=epoch,
        world=1,
        time="2026-01-01T00:00:00Z",
        tensors={"w": [2]},
        files={name: {"size": path.stat().st_size, "sha256": sha256(path)} for name, path in files.items()},
        progress={},
    )


def commit(store: CheckpointStore, step: int, stage_end: bool = False) -> Path:
    staged = store.stage(store.name(step))
    files = {"shard": staged / "shard"}
    files["shard"].write_bytes(bytes(range(256)) * 40)
    return store.commit(manifest_of(step, store.epoch, files, stage_end))


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    store = CheckpointStore(tmp_path / "run", 1)
    store.claim("uid-1")
    return store


def test_what_is_committed_is_found_newest_first(store: CheckpointStore) -> None:
    for step in (2, 10, 9):
        commit(store, step)
    assert [Manifest.read(folder).step for folder in store.candidates()] == [10, 9, 2]  # type: ignore[union-attr]
    assert all(damage(folder) is None for folder in store.candidates())


def test_what_is_only_staged_is_not_found(store: CheckpointStore) -> None:
    (store.stage(store.name(3)) / "shard").write_bytes(b"x")
    assert store.candidates() == []


def test_a_stale_epoch_can_not_commit_nor_write(store: CheckpointStore) -> None:
    commit(store, 1)
    (store.stage(store.name(2)) / "shard").write_bytes(b"half")
    newer = CheckpointStore(store.run_folder, 2)
    newer.claim("uid-1")
    with pytest.raises(Fenced):
        store.commit(manifest_of(2, 1, {}))
    with pytest.raises(Fenced):
        store.stage(store.name(3))
    with pytest.raises(Fenced):
        store.publish("export", store.run_folder / "export")
    commit(newer, 2)
    assert [folder.name for folder in newer.candidates()] == [store.name(2), store.name(1)]


def test_an_older_epoch_can_not_claim_after_a_newer_one(store: CheckpointStore) -> None:
    newer = CheckpointStore(store.run_folder, 7)
    newer.claim("uid-1")
    with pytest.raises(Fenced, match="epoch 7 has claimed"):
        CheckpointStore(store.run_folder, 6).claim("uid-1")
    commit(newer, 4)


def test_a_run_that_is_claimed_again_under_its_epoch_drops_what_was_half_written(store: CheckpointStore) -> None:
    (store.stage(store.name(2)) / "left-over").write_bytes(b"x")
    store.claim("uid-1")
    assert [path.name for path in commit(store, 2).iterdir() if path.name == "left-over"] == []


def test_a_claim_removes_what_claims_before_it_left_behind(store: CheckpointStore) -> None:
    left = store.run_folder / "staging" / ".fenced-0000000001-2"
    left.mkdir()
    (left / "shard").write_bytes(b"x")
    CheckpointStore(store.run_folder, 3).claim("uid-1")
    assert [folder.name for folder in (store.run_folder / "staging").iterdir()] == ["0000000003"]


def test_a_checkpoint_of_a_newer_format_is_refused_rather_than_taken_for_damaged(store: CheckpointStore) -> None:
    folder = commit(store, 1)
    path = folder / "manifest.json"
    body = json.loads(path.read_text())["manifest"]
    assert body.pop("format") == 1
    rewrite(path, body)
    assert damage(folder) is None  # as the first versions wrote it
    rewrite(path, body | {"format": 2, "what": "nobody knows yet"})
    with pytest.raises(Refused, match="has format 2, and these workers read up to 1: use the image that wrote it"):
        damage(folder)


def rewrite(path: Path, body: dict[str, Any]) -> None:
    path.write_text(json.dumps({"sha256": module._digest(body), "manifest": body}))


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_volume_is_named_with_what_to_do(store: CheckpointStore, error: Exception) -> None:
    explained = store.explain(error)
    assert isinstance(explained, StoreFull)
    assert str(store.run_folder) in str(explained)
    assert "make the claim of checkpoint.volume larger" in str(explained)
    other = OSError(errno.EIO, "Input/output error")
    assert store.explain(other) is other


def test_a_folder_of_another_uid_is_refused(store: CheckpointStore) -> None:
    with pytest.raises(Refused, match="belongs to the ArcticTraining with uid uid-1, not to uid-2"):
        CheckpointStore(store.run_folder, 2).claim("uid-2")
    commit(store, 1)  # and its owner was not fenced by the try


@pytest.mark.parametrize("file", ["shard", "manifest.json"])
def test_any_damage_to_any_file_is_noticed(store: CheckpointStore, file: str) -> None:
    folder = commit(store, 1)
    whole = (folder / file).read_bytes()
    for place in (0, len(whole) // 3, len(whole) - 3):
        damaged = bytearray(whole)
        damaged[place] ^= 4
        (folder / file).write_bytes(damaged)
        assert damage(folder), place
    (folder / file).write_bytes(whole[:-5])
    assert damage(folder)
    (folder / file).unlink()
    assert damage(folder)
    (folder / file).write_bytes(whole)
    assert damage(folder) is None


def test_a_file_that_can_not_be_read_now_is_not_taken_for_damaged(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = commit(store, 1)

    def fail(path: Path) -> str:
        raise OSError(errno.ESTALE, "Stale file handle", str(path))

    monkeypatch.setattr(module, "sha256", fail)
    with pytest.raises(OSError, match="Stale file handle"):
        damage(folder)


def test_the_newest_and_the_last_of_each_stage_are_kept(store: CheckpointStore) -> None:
    for step in range(1, 11):
        commit(store, step, stage_end=step in (3, 6))
    store.thin_out(2)
    assert [int(folder.name.removeprefix("step-")) for folder in store.candidates()] == [10, 9, 6, 3]


def test_what_people_put_beside_the_checkpoints_is_neither_read_nor_deleted(store: CheckpointStore) -> None:
    folders = [commit(store, step) for step in (1, 2)]
    copy = shutil.copytree(folders[1], folders[1].with_name(f"{folders[1].name}.kept"))
    packed = folders[1].with_name(f"{folders[1].name}.tar")
    packed.write_bytes(b"x")
    assert store.candidates() == folders[::-1]
    store.thin_out(1)
    assert store.candidates() == folders[1:]
    assert copy.exists()
    assert packed.exists()


def test_a_checkpoint_can_take_the_place_of_a_damaged_one_of_its_step(store: CheckpointStore) -> None:
    folder = commit(store, 5)
    (folder / "shard").write_bytes(b"damaged")
    assert commit(store, 5) == folder
    assert damage(folder) is None


def test_ranks_that_share_the_files_out_see_the_damage_between_them(store: CheckpointStore, tmp_path: Path) -> None:
    staged = store.stage(store.name(1))
    files = {f"shard-{i}": staged / f"shard-{i}" for i in range(5)}
    for path in files.values():
        path.write_bytes(path.name.encode())
    folder = store.commit(manifest_of(1, 1, files))
    (folder / "shard-3").write_bytes(b"shard-X")
    assert [damage(folder, rank, 2) for rank in range(2)] == [None, "shard-3 has another content than was written"]


def test_an_unreadable_owner_is_refused_rather_than_overwritten(store: CheckpointStore) -> None:
    owner = store.run_folder / "owner.json"
    owner.write_text("{")
    with pytest.raises(Refused, match=r"owner\.json can't be read"):
        store.claim("uid-1")
    owner.write_text(json.dumps({"uid": "uid-1"}))
    store.claim("uid-1")


def test_a_store_that_can_not_be_written_is_refused_with_what_to_do() -> None:
    with pytest.raises(Refused) as refused:
        CheckpointStore(Path("/sys/run"), 1).claim("uid-1")  # where not even root may make a folder
    assert refused.value.reason == "StoreNotWritable"
    assert refused.value.message.startswith("/sys/run can't be written by user ")
