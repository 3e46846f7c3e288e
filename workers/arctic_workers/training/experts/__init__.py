"""Experts shared out over ranks, and their exchange hidden behind what else a layer computes."""

from arctic_workers.training.experts.exchange import Exchange
from arctic_workers.training.experts.layer import Company, ParallelExperts, TrainedExperts
from arctic_workers.training.experts.overlap import Overlap

__all__ = ["Company", "Exchange", "Overlap", "ParallelExperts", "TrainedExperts"]
