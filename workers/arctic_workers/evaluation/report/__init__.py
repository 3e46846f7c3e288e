"""Evaluations as one page: scores with intervals, failures by kind, models side by side; whole in itself."""

from arctic_workers.evaluation.report.evaluated import Evaluated as Evaluated
from arctic_workers.evaluation.report.page import page as page
