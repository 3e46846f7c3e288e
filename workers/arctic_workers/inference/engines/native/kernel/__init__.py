"""The layers of a rank as one call of compiled code, for CPUs with AVX2; where it is missing, torch does the work."""
