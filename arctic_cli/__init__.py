"""The `arctic` command: one module a word, each a thin shell around the packages that do the work."""
