"""What a model needs of machines, computed before anything runs. Pure, no torch: figures are arguments or a table's."""
