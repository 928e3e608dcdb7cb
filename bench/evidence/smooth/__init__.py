"""Smooth training: full-batch gradient descent, where operators extrapolate, beside every alternative."""
