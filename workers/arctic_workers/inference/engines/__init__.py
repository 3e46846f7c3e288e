"""One room an engine, each behind the protocol of `arctic_workers.inference.engine`; none knows another."""
