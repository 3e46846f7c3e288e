"""The OpenAI-compatible API over any engine: requests, text, admission, answers. No engine and no torch here."""
