"""A room a suite: what it asks, in which published format its data are, and how it judges an answer."""
