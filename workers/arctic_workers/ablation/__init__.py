"""What an ablation has found as a page: `arctic_ablation` has what is found, and how."""
