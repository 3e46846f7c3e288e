"""What runs on the GPU, in Triton: jitted functions alone."""
