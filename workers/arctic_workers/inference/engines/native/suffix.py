"""Tokens that probably follow, from what the prompt and earlier answers had after the same words. No torch, no clock.

SuffixDecoding (Oliaro et al. 2024, arXiv 2411.04975): what agents and editors write was often written before. Where
the latest tokens stand in the past, those that followed there are proposed, and one step of the model verifies them
all. In place of a suffix tree an index of short runs of tokens finds the place, and the text itself tells how far back
it agrees: the same longest match, a dictionary entry a token.
"""

from collections import OrderedDict
from collections.abc import Iterable

from arctic_workers.inference.engines.native.budget import StepTimes
from arctic_workers.inference.engines.native.sequence import Sequence

RUN = 3
"""Tokens that have to agree before anything is proposed."""
MOST = 16
"""Most tokens proposed at once."""
LONGEST_MATCH = 64
"""Tokens that are compared backwards."""
HOPEFUL = 0.75
"""Share of proposed tokens that is taken for right before any was verified."""
_MEMORY = 0.75
"""Weight of what was known of a sequence against its latest proposal."""
_FIRST_PAUSE, _LONGEST_PAUSE = 8, 512
"""Tokens for which a sequence proposes nothing after proposals that were wrong; doubled each time."""
PAST_TOKENS = 1 << 17
"""Tokens of earlier answers that are kept, in all."""


class History:
    """Tokens in order, and where each short run of them was last."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self._after: dict[tuple[int, ...], tuple[int, int]] = {}
        """By run, the positions after its last occurrence and after the one before; 0 where there is none."""

    def extend(self, tokens: Iterable[int]) -> None:
        """Append tokens."""
        for token in tokens:
            self.tokens.append(token)
            if (end := len(self.tokens)) >= RUN:
                run = tuple(self.tokens[end - RUN :])
                self._after[run] = end, self._after.get(run, (0, 0))[0]

    def follow(self, latest: list[int]) -> tuple[int, list[int]]:
        """Return how many of the latest tokens stand here, where most of them do, and what followed them."""
        best, place = 0, 0
        for after in self._after.get(tuple(latest[-RUN:]), ()):
            if 0 < after < len(self.tokens) and (agreed := self._agreed(latest, after)) > best:
                best, place = agreed, after
        return best, self.tokens[place : place + min(best, MOST)] if best else []

    def _agreed(self, latest: list[int], after: int) -> int:
        agreed = RUN
        most = min(after, len(latest), LONGEST_MATCH)
        while agreed < most and self.tokens[after - 1 - agreed] == latest[-1 - agreed]:
            agreed += 1
        return agreed


class Past:
    """Earlier answers, those of each salt for themselves; the longest unused are forgotten."""

    def __init__(self, most: int = PAST_TOKENS) -> None:
        self._most = most
        self._of: OrderedDict[bytes, list[History]] = OrderedDict()
        self._kept = 0
        """Tokens in all: salts may be many."""

    def add(self, salt: bytes, tokens: list[int]) -> None:
        """Keep an answer: two generations a salt, of which the older goes when the newer is full."""
        generations = self._of.setdefault(salt, [History()])
        self._of.move_to_end(salt)
        self._kept -= _size(generations)
        if len(generations[-1].tokens) > self._most // 4:
            generations[:] = [generations[-1], History()]
        generations[-1].extend(tokens)
        generations[-1].extend([-1])  # no run goes from one answer into the next
        self._kept += _size(generations)
        while len(self._of) > 1 and self._kept > self._most:
            self._kept -= _size(self._of.popitem(last=False)[1])

    def of(self, salt: bytes) -> list[History]:
        """Return the answers of a salt."""
        return self._of.get(salt, [])


def _size(histories: list[History]) -> int:
    return sum(len(history.tokens) for history in histories)


class _Speaker:
    """What is known of one sequence."""

    def __init__(self) -> None:
        self.history = History()
        self.right = HOPEFUL
        """Share of the tokens proposed lately that was right."""
        self.pause = _FIRST_PAUSE
        self.silent_until = 0
        """Length from which on it may propose again."""


class Drafter:
    """Proposes tokens for the sequences of a step, as many as make the step worth more than it costs."""

    def __init__(self, times: StepTimes) -> None:
        self._times = times
        self._past = Past()
        self._speakers: dict[Sequence, _Speaker] = {}

    def propose(self, sequences: list[Sequence], most: int) -> dict[Sequence, list[int]]:
        """Return what to verify in a step that carries one token of each sequence, `most` tokens more in all.

        A step is worth the tokens that come out of it by its time, as measured: a proposed token is added, the
        likeliest first, while that grows. A size of step that was not seen lately is tried, unless smaller ones were
        a loss.
        """
        found = {sequence: draft for sequence in sequences if (draft := self._draft(sequence))}
        chances = sorted(
            (self._speakers[sequence].right ** (place + 1), -place, index)
            for index, (sequence, draft) in enumerate(found.items())
            for place in range(len(draft))
        )
        counts = [0] * len(found)
        for index in self._worthy(len(sequences), list(reversed(chances))[:most]):
            counts[index] += 1
        return {
            sequence: draft[:count] for (sequence, draft), count in zip(found.items(), counts, strict=True) if count
        }

    def learn(self, sequence: Sequence, proposed: int, right: int) -> None:
        """Take how many of the proposed tokens were right."""
        speaker = self._speakers.get(sequence)
        if speaker is None or not proposed:
            return
        # The first wrong token tells; those behind it were never judged.
        share = right / min(right + 1, proposed)
        speaker.right = _MEMORY * speaker.right + (1 - _MEMORY) * share
        if right:
            speaker.pause = _FIRST_PAUSE
        else:
            speaker.silent_until = sequence.length + speaker.pause
            speaker.pause = min(2 * speaker.pause, _LONGEST_PAUSE)

    def end(self, sequence: Sequence) -> None:
        """Keep what a sequence was answered for others; what outgrows its window has forgotten it."""
        self._speakers.pop(sequence, None)
        if sequence.outgrows:
            return
        answer = sequence.tokens[len(sequence.request.prompt) :]
        if len(answer) > RUN:
            self._past.add(sequence.salt, answer)

    def _draft(self, sequence: Sequence) -> list[int]:
        # What outgrows its window has dropped what a wrong proposal would need again; where earlier tokens change the
        # logits, each row would need counts of its own.
        if sequence.outgrows or sequence.request.sampling.counts_tokens:
            return []
        speaker = self._speakers.setdefault(sequence, _Speaker())
        tokens, sampling = sequence.tokens, sequence.request.sampling
        speaker.history.extend(tokens[len(speaker.history.tokens) :])
        room = sampling.max_tokens - sequence.generated - 1
        if room <= 0 or len(tokens) < RUN or len(tokens) < speaker.silent_until:
            return []
        latest = tokens[-LONGEST_MATCH:]
        _, best = max(
            (history.follow(latest) for history in (*self._past.of(sequence.salt), speaker.history)),
            key=lambda found: found[0],
        )
        draft = best[:room]
        return draft[: draft.index(-1)] if -1 in draft else draft

    def _worthy(self, sequences: int, chances: list[tuple[float, int, int]]) -> list[int]:
        """Return the indexes of the chances to take, which come likeliest first."""
        best, rate = 0, self._rate(sequences, sequences)
        worth, now = float(sequences), rate
        for taken, (chance, _, _) in enumerate(chances, 1):
            worth += chance
            tokens = sequences + taken
            if not self._times.knows(tokens):
                # Not where it has been getting worse already.
                best = taken if now >= HOPEFUL * rate else best
                break
            if (now := self._rate(worth, tokens)) > rate:
                best, rate = taken, now
        return [index for _, _, index in chances[:best]]

    def _rate(self, worth: float, tokens: int) -> float:
        seconds = self._times.seconds(tokens)
        return worth / seconds if seconds else 0.0
