"""The pod of an ablation, and the page that it leaves: `arctic_ablation` has what is found, and how."""
