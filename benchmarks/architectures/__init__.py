"""Public architectures, dense and pruned: does each compile, equal torch, and how fast is it."""
