from arctic_workers.inference import memory


def test_the_cache_takes_a_share_of_the_memory_and_no_more_than_is_of_use() -> None:
    assert memory.affordable_blocks(1000, fraction=0.5, block_bytes=100, most=99) == 5
    assert memory.affordable_blocks(10**6, fraction=0.5, block_bytes=100, most=99) == 99
