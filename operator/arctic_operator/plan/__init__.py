"""What should exist and what the status says: pure functions of a specification, what was observed, and the time."""
