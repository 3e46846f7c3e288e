"""What `benchmarks.reconcile` is made of: the control plane, the workers' side, and who is compared."""
