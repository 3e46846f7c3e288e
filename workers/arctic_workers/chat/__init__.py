"""Conversations as text: what training and inference both need of a model's chat template."""
