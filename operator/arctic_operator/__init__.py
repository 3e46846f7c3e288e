"""The operator: observe, plan, apply, and one status write."""
