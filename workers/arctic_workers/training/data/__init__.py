"""From sources to the tokens of a step: documents, tokenizer, token streams, mixture, batches."""
