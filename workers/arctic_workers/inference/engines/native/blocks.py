"""Which blocks of the cache belong to whom, and which of them hold how known prompts begin. No torch, no I/O.

A block is a number here. Full blocks alone are shared, and nobody writes to a full block again: none is ever copied.
What a block holds is known by its tokens and by the block before it, compared as they are and not by a hash: two
prompts that differ never share.
"""

from collections.abc import Sequence

BLOCK_SIZE = 16
"""Tokens of a block of the cache."""
Link = int | bytes
"""What comes before a block: the number under which the block before it is kept, or the salt of a first one."""
_Content = tuple[Link, tuple[int, ...]]


class BlockManager:
    """Gives out blocks of `size` tokens each, counts how many tables hold each, and keeps what is asked for again.

    A kept block that no table holds is as good as free: the one that was let go first is taken first. A table lets go
    its last block first, so that a beginning stays longer than what follows it.
    """

    def __init__(self, count: int, size: int) -> None:
        self.count = count
        self.size = size
        self.reset()

    def reset(self) -> None:
        """Free all blocks and keep none; no table may be in use any more."""
        self._free = list(range(self.count - 1, -1, -1))
        self._references = [0] * self.count
        self._kept: dict[_Content, int] = {}
        self._contents: dict[int, _Content] = {}
        """By block, the inverse of `_kept`."""
        self._numbers: dict[int, int] = {}
        """By kept block, the number that its followers name; no number is given twice."""
        self._next = 0
        self._idle: dict[int, None] = {}
        """Kept blocks that no table holds, the one to take first first."""

    @property
    def free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free) + len(self._idle)

    @property
    def utilization(self) -> float:
        """Share of the blocks in use, 0 to 1."""
        return 1 - self.free / self.count

    @property
    def capacity(self) -> int:
        """Tokens that fit into all blocks."""
        return self.count * self.size

    def missing(self, table: list[int], tokens: int) -> int:
        """How many blocks a table lacks to hold so many tokens."""
        return max(-(-tokens // self.size) - len(table), 0)

    def grow(self, table: list[int], tokens: int) -> bool:
        """Extend a table, in place, to hold so many tokens; or change nothing and return False."""
        missing = self.missing(table, tokens)
        if missing > self.free:
            return False
        for _ in range(missing):
            block = self._free.pop() if self._free else self._evict()
            self._references[block] = 1
            table.append(block)
        return True

    def find(self, salt: bytes, tokens: Sequence[int]) -> tuple[list[int], list[Link]]:
        """Return the kept blocks that hold how tokens begin, and their links; at least one token is left to compute."""
        blocks: list[int] = []
        links: list[Link] = []
        for start in range(0, len(tokens) - self.size, self.size):
            content = (links[-1] if links else salt, tuple(tokens[start : start + self.size]))
            if (block := self._kept.get(content)) is None:
                break
            blocks.append(block)
            links.append(self._numbers[block])
        return blocks, links

    def start(self, table: list[int], kept: Sequence[int], tokens: int, *, spare: int = 0) -> bool:
        """Fill an empty table with kept blocks and new ones, to hold so many tokens; or change nothing, return False.

        `spare` blocks have to stay free.
        """
        idle = [block for block in kept if block in self._idle]
        if -(-tokens // self.size) - len(kept) + spare > self.free - len(idle):
            return False
        for block in kept:
            self._references[block] += 1
        for block in idle:
            del self._idle[block]
        table += kept
        return self.grow(table, tokens)

    def keep(self, table: list[int], index: int, before: Link, tokens: tuple[int, ...]) -> Link:
        """Keep a full block of a table for others, and return its link.

        Where another block is kept that holds the same, the table gets that one: steps on their way may still use
        the old one, which is written by later steps alone.
        """
        block, content = table[index], (before, tokens)
        known = self._kept.get(content)
        if known is None:
            self._kept[content], self._contents[block] = block, content
            self._numbers[block] = self._next
            self._next += 1
        elif known != block:
            self._references[known] += 1
            self._idle.pop(known, None)
            table[index] = known
            self._release(block)
        return self._numbers[table[index]]

    def owned(self, table: list[int]) -> int:
        """How many blocks of a table no other table holds."""
        return sum(self._references[block] == 1 for block in table)

    def release(self, table: list[int]) -> None:
        """Empty a table, in place; blocks that no other table holds become free."""
        while table:
            self._release(table.pop())

    def faults(self, held: int = 0) -> list[str]:
        """Return a sentence for each thing that is wrong, while tables hold so many blocks in all, shared ones each."""
        unused = [*self._free, *self._idle]
        checks = (
            (sum(self._references) == held, f"{sum(self._references)} blocks are referred to, and {held} held"),
            (len(set(unused)) == len(unused), "a block is free twice"),
            (not any(self._references[block] for block in unused), "a block is free and held"),
            (self.free + sum(map(bool, self._references)) == self.count, "a block is neither free nor held"),
            (all(self._contents.get(block) == kept for kept, block in self._kept.items()), "a kept block is mistaken"),
            (set(self._contents) == set(self._kept.values()) == set(self._numbers), "a block is kept by halves"),
            (not any(block in self._contents for block in self._free), "a free block is kept"),
        )
        return [sentence for right, sentence in checks if not right]

    def _release(self, block: int) -> None:
        self._references[block] -= 1
        if self._references[block]:
            return
        if block in self._contents:
            self._idle[block] = None
        else:
            self._free.append(block)

    def _evict(self) -> int:
        """Forget what the kept block holds that nobody has used for longest."""
        block = next(iter(self._idle))
        del self._idle[block]
        del self._kept[self._contents.pop(block)]
        del self._numbers[block]
        return block
