"""The layers of a rank as one call of compiled code, for CPUs with AVX2 or AVX-512; elsewhere torch does the work."""
