"""Experts shared out over ranks, and their exchange hidden behind what else a layer computes."""

from arctic_workers.training.experts.exchange import Exchange
from arctic_workers.training.experts.exposure import GRADIENTS, Flights
from arctic_workers.training.experts.layer import Company, ParallelExperts, TrainedExperts
from arctic_workers.training.experts.overlap import Overlap

__all__ = ["GRADIENTS", "Company", "Exchange", "Flights", "Overlap", "ParallelExperts", "TrainedExperts"]
