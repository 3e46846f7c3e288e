"""The pods: what trains, serves and judges a model, and the control that each of them carries."""
