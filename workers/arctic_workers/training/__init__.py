"""Training of an Arctic over a curriculum: supervisor, data, trainer, checkpoints, export."""
