"""API keys at a leader that stands alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from engines import Scripted
from prometheus_client import CollectorRegistry

from arctic_workers.inference.http.keys import KeyFiles
from arctic_workers.inference.http.server import Api, Gate
from arctic_workers.inference.http.text import Text
from arctic_workers.inference.metrics import Metrics


async def status(text: Text, folder: Path, path: str = "/v1/models", **headers: str) -> httpx.Response:
    engine = Scripted()
    metrics = Metrics(CollectorRegistry(), engine.stats)
    keys = KeyFiles(folder)
    api = Api(engine, text, metrics, Gate(), model="tiny", vocabulary=300, most_running=2, most_waiting=8, keys=keys)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=api.app), base_url="http://tiny") as client:
        return await client.get(path, headers=headers)


@pytest.mark.parametrize("key", ["", "Bearer", "Bearer wrong", "Basic right", "right", "Bearer right2"])
async def test_without_a_key_a_request_is_refused_as_openai_does(text: Text, tmp_path: Path, key: str) -> None:
    (tmp_path / "people").write_text("right\n")
    refused = await status(text, tmp_path, Authorization=key)
    assert (refused.status_code, refused.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert refused.json()["error"]["code"] == "invalid_api_key"
    assert (await status(text, tmp_path, "/health", Authorization=key)).status_code == 200


async def test_any_of_the_keys_does(text: Text, tmp_path: Path) -> None:
    (tmp_path / "people").write_text("one\ntwo\n")
    (tmp_path / "robots").write_text("three")
    for key in ("Bearer one", "bearer two", "Bearer  three"):
        assert (await status(text, tmp_path, Authorization=key)).status_code == 200


async def test_where_the_keys_are_gone_nobody_may_ask(text: Text, tmp_path: Path) -> None:
    assert (await status(text, tmp_path / "nothing", Authorization="Bearer one")).status_code == 401


def test_keys_that_change_count_at_once(tmp_path: Path) -> None:
    files = KeyFiles(tmp_path)
    (tmp_path / "people").write_text("old")
    assert files.accepts(b"old")
    (tmp_path / "next").write_text("newer")
    (tmp_path / "next").replace(tmp_path / "people")
    assert (files.accepts(b"old"), files.accepts(b"newer"), files.accepts(b"")) == (False, True, False)


@pytest.mark.parametrize("call", ["stat", "read_bytes"])
def test_a_file_that_goes_while_keys_are_read_takes_only_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    files, gone = KeyFiles(tmp_path), tmp_path / "gone"
    (tmp_path / "people").write_text("one")
    gone.write_text("two")
    before: Callable[..., Any] = getattr(Path, call)

    def late(path: Path, **arguments: Any) -> Any:
        if path == gone:
            gone.unlink(missing_ok=True)
        return before(path, **arguments)

    monkeypatch.setattr(Path, call, late)
    monkeypatch.setattr(Path, "is_file", lambda path: path.name in ("people", "gone"))
    assert (files.accepts(b"one"), files.accepts(b"two")) == (True, False)
