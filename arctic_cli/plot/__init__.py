"""`arctic plot`: what was found or planned, as pictures for slides and papers; pages have their own."""

from arctic_cli.plot.command import plot as plot
