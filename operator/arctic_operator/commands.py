"""Tells workers what plans say, beside the reconciling: an answer may take minutes, or never come. Decides nothing."""

import asyncio
import logging
from collections.abc import Callable, Iterable

from arctic_api.training import CheckpointRequest
from arctic_operator.cache import Key
from arctic_operator.control import CHECKPOINT_SECONDS, CommandError, Followers
from arctic_operator.plan.actions import Command

log = logging.getLogger(__name__)

DRAINS_AT_ONCE = 64
"""Leaders that are told at a time: each takes a handshake, and a service may lose a thousand groups at once."""
COMMAND_SECONDS = 120.0
"""A world looks at commands at the end of its step, which may be long."""


class Commands:
    """One call a worker and kind of command at a time. What is lost is told again by the next plan."""

    def __init__(self, followers: Followers, look_again: Callable[[Key], None]) -> None:
        """Call over the streams of `followers`; `look_again` is called with the key of an object that has answered."""
        self._followers = followers
        self._look_again = look_again
        self._draining = asyncio.Semaphore(DRAINS_AT_ONCE)
        self._tasks: dict[tuple[Key, str, str], asyncio.Task[None]] = {}
        self._answers: dict[Key, tuple[str, CheckpointRequest]] = {}

    def send(self, key: Key, uid: str, commands: Iterable[Command]) -> None:
        """Begin to tell a worker, unless it is being told already."""
        for command in commands:
            place = (key, command.name, command.group)
            if place not in self._tasks:
                task = asyncio.create_task(self._tell(key, uid, command), name=f"{command.name} {key} {command.group}")
                self._tasks[place] = task
                task.add_done_callback(lambda _, place=place: self._tasks.pop(place, None))  # type: ignore[misc]

    @property
    def pending(self) -> bool:
        """Whether anything is being told."""
        return bool(self._tasks)

    def answer(self, key: Key, uid: str) -> CheckpointRequest | None:
        """Return the checkpoint that was asked for last of the object with this uid."""
        of, request = self._answers.get(key, ("", None))
        return request if of == uid else None

    def forget(self, key: Key) -> None:
        """Forget an object that is gone."""
        self._answers.pop(key, None)
        for (of, *_), task in list(self._tasks.items()):
            if of == key:
                task.cancel()

    def close(self) -> None:
        """Give up what is being told."""
        for task in list(self._tasks.values()):
            task.cancel()

    async def _tell(self, key: Key, uid: str, command: Command) -> None:
        try:
            await self._call(key, uid, command)
        except CommandError as error:
            what = f"{command.name} {command.group}".rstrip()
            log.info("%s %s/%s was not told to %s, and will be: %s", *key, what, error)
            return
        self._look_again(key)

    async def _call(self, key: Key, uid: str, command: Command) -> None:
        world = (key, command.group)
        match command.name:
            case "drain":
                async with self._draining:
                    await self._followers.drain(world)
            case "pause":
                await self._followers.pause(world, COMMAND_SECONDS)
            case "resume":
                await self._followers.resume(world, COMMAND_SECONDS)
            case "stop_after":
                await self._followers.stop_after(world, command.argument, COMMAND_SECONDS)
            case "checkpoint":
                committed = await self._followers.checkpoint(world, CHECKPOINT_SECONDS)
                request = CheckpointRequest(token=command.argument, step=committed.step, uri=committed.uri)
                self._answers[key] = (uid, request)
