"""Every figure that the README claims, as a command that prints it: `python -m benchmarks.NAME [--quick]`.

Each prints a table for people and, as its last line, one JSON object of its figures.
"""
