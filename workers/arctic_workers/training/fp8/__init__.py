"""Training with products in FP8: e4m3 values with a scale a row, of the experts and the big dense matrices.

The recipe is torchao's `rowwise` (https://docs.pytorch.org/ao/stable/workflows/training.html): all three products of a
matrix, forward, the input's gradient and the weight's, take e4m3 operands, each of which has a scale for every row that
the product sums along, rounded down to a power of two. Weights, their gradients, the optimizer and all between products
stay as they are.
"""
