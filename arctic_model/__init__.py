"""The Arctic model alone: configuration, layers, weights, FP8, parallel plans and costs. It knows no cluster."""
