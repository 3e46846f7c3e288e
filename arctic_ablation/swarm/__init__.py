"""The best mixture of each stage, foretold from a swarm of trainings whose mixtures are drawn. Needs scikit-learn."""
