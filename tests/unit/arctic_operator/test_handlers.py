"""What kopf makes of the API server's answers, with the operator's set-up."""

import asyncio
import json
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kopf
import pytest
from aiohttp import web

from arctic_api import API_VERSION
from arctic_operator.__main__ import allow_deep_objects
from arctic_operator.cache import CUSTOM_KINDS, Cache, Key
from arctic_operator.cluster import PAGE, RESOURCES
from arctic_operator.handlers import build_registry, kopf_settings
from arctic_operator.observe import Invalid, Observer

LEVELS = 9_990
"""In an object that the API server just takes."""
DEEP = '{"a":' * LEVELS + "1" + "}" * LEVELS


class DeepServer:
    """An API server with two trainings that are nested deeply: one in its list, and one in its watch."""

    def __init__(self) -> None:
        self.kinds = {"Namespace": ("", "v1", "namespaces")}
        for kind in CUSTOM_KINDS:
            self.kinds[kind] = (*API_VERSION.split("/"), RESOURCES[kind].plural)
        self.over = asyncio.Event()
        self.limits: set[str | None] = set()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        root, *parts = request.path.strip("/").split("/")
        if not parts:
            groups = [{"name": g, "versions": [{"version": v}], "preferredVersion": {"version": v}} for g, v in GROUPS]
            return web.json_response({"versions": ["v1"]} if root == "api" else {"groups": groups})
        group, version, *plural = ["", *parts] if root == "api" else parts
        if not plural:
            return web.json_response({"resources": self.resources(group, version)})
        deep = plural == ["arctictrainings"]
        if not request.query.get("watch"):
            self.limits.add(request.query.get("limit"))
            items = training("listed", 5) if deep else ""
            text = f'{{"kind": "List", "apiVersion": "v1", "metadata": {{"resourceVersion": "9"}}, "items": [{items}]}}'
            return web.Response(text=text, content_type="application/json")
        stream = web.StreamResponse()
        await stream.prepare(request)
        if deep:
            await stream.write(f'{{"type": "ADDED", "object": {training("watched", 10)}}}\n'.encode())
        await self.over.wait()
        return stream

    def resources(self, group: str, version: str) -> list[dict[str, Any]]:
        verbs = ["list", "watch", "get", "patch"]
        return [
            {"name": plural, "singularName": "", "kind": kind, "namespaced": True, "verbs": verbs}
            for kind, place in self.kinds.items()
            for plural in place[2:]
            if place[:2] == (group, version)
        ]


GROUPS = sorted({tuple(r.api_version.split("/")) for r in RESOURCES.values() if "/" in r.api_version})


def training(name: str, version: int) -> str:
    metadata = {"name": name, "namespace": "team", "uid": name, "generation": 1, "resourceVersion": str(version)}
    stamped = json.dumps(metadata | {"creationTimestamp": "2026-01-01T00:00:00Z"})
    spec = f'{{"model": {{"config": {DEEP}}}}}'
    return f'{{"apiVersion": "{API_VERSION}", "kind": "ArcticTraining", "metadata": {stamped}, "spec": {spec}}}'


@pytest.fixture
def deep_objects() -> Iterator[None]:
    levels, stack = sys.getrecursionlimit(), resource.getrlimit(resource.RLIMIT_STACK)
    allow_deep_objects()
    yield
    sys.setrecursionlimit(levels)
    resource.setrlimit(resource.RLIMIT_STACK, stack)


@pytest.mark.usefixtures("deep_objects")
async def test_an_object_that_is_nested_deeply_is_refused_and_ends_no_watch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, app = DeepServer(), web.Application()
    app.router.add_route("GET", "/{path:.*}", server.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path, runner.addresses[0][1])))
    cache, seen, stop = Cache(), asyncio.Event(), asyncio.Event()

    def see(_: str, manifest: dict[str, Any]) -> None:
        cache.put(manifest)
        if cache.count("ArcticTraining") == 2:
            seen.set()

    watching = asyncio.create_task(
        kopf.operator(
            registry=build_registry(see),
            settings=kopf_settings(),
            standalone=True,
            clusterwide=True,
            stop_flag=stop,
        )
    )
    try:
        await asyncio.wait_for(seen.wait(), 60)
    finally:
        stop.set()
        server.over.set()
        await watching
        await runner.cleanup()
    assert server.limits == {str(PAGE)}, "while a list is read nothing else runs, however long it is"
    for name in ("listed", "watched"):
        subject = Observer(None, cache, read_nodes=False).subject(Key("ArcticTraining", "team", name))
        assert isinstance(subject, Invalid)
        assert "nested too deeply" in subject.message


def kubeconfig(folder: Path, port: int) -> Path:
    content = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
    }
    path = folder / "kubeconfig"
    path.write_text(json.dumps(content))
    return path
