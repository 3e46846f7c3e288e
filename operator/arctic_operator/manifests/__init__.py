"""Builders of child objects, one a kind: pure functions from a specification to a manifest."""
