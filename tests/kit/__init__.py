"""Kits: the plan, the runner in C on three processors and a GPU, and what devices wrote."""
