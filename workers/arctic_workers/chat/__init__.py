"""Text and conversations as tokens: what training and inference both need of a model's tokenizer and chat template."""
