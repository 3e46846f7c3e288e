"""Where the pods of a world leave word for each other: the store of their rendezvous, on the first of them."""

import logging
import threading
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

log = logging.getLogger(__name__)

ANSWER_SECONDS = 5.0
"""Longest wait for the store: a host that has vanished would keep a call for ever."""


class Board:
    """One pod's access to the words of all.

    Args:
        address: of the store, HOST:PORT.
        node: this pod.
        nodes: pods of the world.
    """

    def __init__(self, address: str, node: int, nodes: int) -> None:
        host, _, port = address.rpartition(":")
        self._address = host, int(port)
        self._node = node
        self._keys = [f"arctic/pulse/{each}" for each in range(nodes)]
        self._store: TCPStore | None = None
        self._call: threading.Thread | None = None

    def talk(self, word: str | None, *, listen: bool) -> dict[int, str] | None:
        """Put `word` in place of this pod's last one, and return the last word of each pod that has said any.

        Nothing is put for None, and nothing returned but an empty answer unless it is to `listen`. None where the store
        does not answer: what is asked of it then is lost, or comes late.
        """
        if self._call is not None and self._call.is_alive():
            return None
        heard: list[dict[int, str]] = []

        def call() -> None:
            try:
                heard.append(self._ask(word, listen))
            except RuntimeError:
                log.debug("the store does not answer", exc_info=True)
                self._store = None

        self._call = threading.Thread(target=call, name="board", daemon=True)
        self._call.start()
        self._call.join(ANSWER_SECONDS)
        return heard[0] if heard else None

    def _ask(self, word: str | None, listen: bool) -> dict[int, str]:
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        if self._store is None:
            patience = timedelta(seconds=ANSWER_SECONDS)
            self._store = TCPStore(*self._address, is_master=False, timeout=patience, wait_for_workers=False)
        if word is not None:
            self._store.set(self._keys[self._node], word)
        if not listen:
            return {}
        # Once all have spoken one question is enough: a question a pod, from each pod, is more than one store answers.
        there: Sequence[int] = range(len(self._keys))
        if not self._store.check(self._keys):
            there = [node for node in there if self._store.check([self._keys[node]])]
        values = self._store.multi_get([self._keys[node] for node in there]) if there else []
        return {node: value.decode() for node, value in zip(there, values, strict=True)}
