"""Which blocks of the cache belong to whom. No torch, no I/O: a block is a number here."""


class BlockManager:
    """Gives out blocks of `size` tokens each, and counts how many tables hold each of them."""

    def __init__(self, count: int, size: int) -> None:
        self.count = count
        self.size = size
        self._free = list(range(count - 1, -1, -1))
        self._references = [0] * count

    @property
    def free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

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
            block = self._free.pop()
            self._references[block] = 1
            table.append(block)
        return True

    def share(self, table: list[int]) -> list[int]:
        """Return a second table of the same blocks: each stays until both are released."""
        for block in table:
            self._references[block] += 1
        return list(table)

    def release(self, table: list[int]) -> None:
        """Empty a table, in place; blocks that no other table holds become free."""
        for block in table:
            self._references[block] -= 1
            if not self._references[block]:
                self._free.append(block)
        table.clear()
