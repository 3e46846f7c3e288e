"""How much of the memory that is there keys and values take."""


def affordable_blocks(available: int, *, fraction: float, block_bytes: int, most: int) -> int:
    """How many blocks of keys and values fit into a share of the memory; at most `most`: more could not be used."""
    return min(int(available * fraction) // block_bytes, most)
