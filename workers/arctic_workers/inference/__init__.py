"""Serving: the engine protocol and what stands behind it, request scheduling, and the OpenAI-compatible HTTP server."""
