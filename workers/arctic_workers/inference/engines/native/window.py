"""How far attention looks back where a sequence may outgrow it, and which blocks hold what it sees. No torch, no I/O.

A token at position p sees the latest `size` tokens, itself among them, and the first `sinks` (Xiao et al. 2023, arXiv
2309.17453), as `arctic_model.attention.attention_mask` has it. Positions are those within the cache: what was dropped
between sinks and window is not counted, so no distance is `reach` or more, however long the sequence.
"""

from dataclasses import dataclass

CHUNK = 256
"""Most tokens in one step of a sequence that outgrows its window: its blocks have room for these beside the window."""


@dataclass(frozen=True)
class Window:
    """What a token sees."""

    size: int
    """Latest tokens, itself among them."""
    sinks: int
    """First tokens, which it sees besides."""

    @property
    def reach(self) -> int:
        """Most tokens that one sees: a sequence that is no longer is as without a window."""
        return self.size + self.sinks

    def first(self, position: int) -> int:
        """Return the first position that a token sees after the sinks; 0 while nothing is dropped between."""
        first = position - self.size + 1
        return first if first > self.sinks else 0

    def sink_blocks(self, block_size: int) -> int:
        """Return how many blocks at the start of a table stay there."""
        return -(-self.sinks // block_size)

    def blocks(self, block_size: int) -> int:
        """Return how many blocks are enough for a sequence of any length."""
        tokens = self.size - 1 + CHUNK  # consecutive, and the first anywhere in its block
        return self.sink_blocks(block_size) + (tokens + block_size - 2) // block_size + 1

    def slide(self, table: list[int], dropped: int, end: int, block_size: int) -> int:
        """Make a table hold positions up to `end` by using the oldest blocks after the sinks anew, in place.

        `dropped` blocks between the sinks and what follows them in the table are gone; returns how many are now.
        """
        more = -(-end // block_size) - dropped - len(table)
        if more <= 0:
            return dropped
        start = self.sink_blocks(block_size)
        table[start:] = table[start + more :] + table[start : start + more]
        return dropped + more
