"""From sources to the tokens of a step: documents, tokenizer, token streams, mixture, batches."""

VERSION = 2
"""Of the token streams, and of how windows are cut from them: a run goes on only with its own."""
