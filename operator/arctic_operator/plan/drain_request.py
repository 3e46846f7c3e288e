"""A group that is asked to go: which one it is, and what became of it. It goes as from a node that is emptied."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from arctic_api.inference import ArcticInferenceStatus, DrainRequest
from arctic_api.world import group_index
from arctic_operator.observed import GroupSet, Inference
from arctic_operator.plan.actions import Event

LONGEST = 63
"""What a token may have, and what is kept of a value that can't be read."""
VALUE = re.compile(r"([0-9]{1,9})/(.+)", re.DOTALL)
GOES = "group {} goes as soon as the service can spare it, and another takes its place"
GONE = "group {} is gone"


def drain_request(inference: Inference, groups: Sequence[GroupSet]) -> DrainRequest | None:
    """Return the answer to what is asked for now; None where nothing is.

    One that was answered stays so, whatever group has that number since. One that is taken back, or that another
    replaces, is over for a group that has not begun to drain.
    """
    asked = inference.drain_request
    if not asked:
        return None
    read = VALUE.fullmatch(asked)
    if read is None or len(read[2]) > LONGEST:
        cut = asked[:LONGEST]
        sentence = f"{cut!r} is not GROUP/TOKEN: write a group's number and a new token, such as 0/again"
        return DrainRequest(token=cut, state="Refused", message=sentence)
    number, token, before = int(read[1]), read[2], inference.status.drain_request
    if before and before.token == token:
        return _followed(before, groups)
    there = {group_index(group.name): group for group in groups if not group.deleting}
    if number not in there:
        known = ", ".join(map(str, sorted(there)))
        sentence = f"there is no group {number}: {f'write one of {known}, with a new token' if there else 'nor any'}"
        return DrainRequest(token=token, state="Refused", message=sentence)
    group = there[number]
    return DrainRequest(token=token, state="Draining", group=group.name, uid=group.uid, message=GOES.format(number))


def _followed(before: DrainRequest, groups: Sequence[GroupSet]) -> DrainRequest:
    if before.state != "Draining" or any(group.uid == before.uid for group in groups):
        return before
    gone = GONE.format(group_index(before.group or ""))
    return before.model_copy(update={"state": "Drained", "message": gone})


def leaver(request: DrainRequest | None) -> str | None:
    """Return the uid of the group that is to go."""
    return request.uid if request and request.state == "Draining" else None


def drain_events(before: ArcticInferenceStatus, after: Mapping[str, Any]) -> list[Event]:
    """Return an event for a request that came to an end; `after` is a status as it is written."""
    told = DrainRequest.model_validate(after["drainRequest"]) if after.get("drainRequest") else None
    if told is None or told == before.drain_request or told.state == "Draining":
        return []
    refused = told.state == "Refused"
    return [Event("Warning" if refused else "Normal", "DrainRefused" if refused else "Drained", told.message)]
