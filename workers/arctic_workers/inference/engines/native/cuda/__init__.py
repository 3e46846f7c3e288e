"""The arithmetic on a GPU: Triton kernels, what starts them, and a rank of them. Imported only where it runs."""
