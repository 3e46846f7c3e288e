"""`arctic evaluate`: a model on the suites of enterprise intelligence, from a laptop."""

from arctic_cli.evaluate.command import evaluate as evaluate
