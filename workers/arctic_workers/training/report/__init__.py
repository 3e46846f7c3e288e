"""A run as one page: read from the files that it leaves in its folder, drawn as SVG, whole in itself. No torch."""

from arctic_workers.training.report.page import page as page
from arctic_workers.training.report.page import write_page as write_page
from arctic_workers.training.report.run import Run as Run
