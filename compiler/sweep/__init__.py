"""Sweeps: a grid of models, sizes and passes, built, measured and put into one table."""
