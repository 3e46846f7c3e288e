"""Watching the API server: what the benchmark and its workers see, with no more work than that."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import yaml

LONGEST_LINE = 2**22
RETRY_SECONDS = 0.3
METADATA_ONLY = "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io"


class Watching:
    """A client that watches; an async context manager."""

    def __init__(self, kubeconfig: str) -> None:
        """`kubeconfig` names a file that has the client's certificate in it."""
        document = yaml.safe_load(Path(kubeconfig).read_text())
        self._server = document["clusters"][0]["cluster"]["server"]
        folder = Path(kubeconfig).parent
        self._tls = ssl.create_default_context(cafile=str(folder / "ca.crt"))
        self._tls.load_cert_chain(folder / "admin.crt", folder / "admin.key")

    async def __aenter__(self) -> "Watching":
        """Open it."""
        connector = aiohttp.TCPConnector(ssl=self._tls, limit=0)
        timeout = aiohttp.ClientTimeout(total=None)
        self._session = aiohttp.ClientSession(connector=connector, timeout=timeout, read_bufsize=LONGEST_LINE)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close it."""
        await self._session.close()

    async def events(
        self, path: str, *, labels: str = "", fields: str = "", metadata_only: bool = False
    ) -> AsyncIterator[dict[str, Any]]:
        """Yield what is there and then what changes, for ever. What is there comes as added."""
        query = {"watch": "true", "allowWatchBookmarks": "false", "labelSelector": labels, "fieldSelector": fields}
        headers = {"Accept": METADATA_ONLY if metadata_only else "application/json"}
        while True:
            async with self._session.get(
                self._server + path, params={name: value for name, value in query.items() if value}, headers=headers
            ) as answer:
                if answer.status == 429:
                    # The API server has not read what there is of a kind yet.
                    await asyncio.sleep(RETRY_SECONDS)
                    continue
                answer.raise_for_status()
                async for line in answer.content:
                    yield json.loads(line)
