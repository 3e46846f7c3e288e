"""What `benchmarks.planner` predicts and measures: trainings, engines, and the queue of a service."""
