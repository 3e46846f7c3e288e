"""What `benchmarks.gpu` measures, a module a part: each runs on CPU tensors too, at sizes that an interpreter bears."""
