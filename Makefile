# The words a person types. Each does all its own set-up.
.PHONY: help
help:
	@grep -E '^## ' Makefile | sed 's/^## //'
