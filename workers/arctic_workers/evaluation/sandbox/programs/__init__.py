"""What confined processes run, handed over as text: they import the standard library and each other."""
