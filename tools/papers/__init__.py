"""Figures that papers state, measured here: a function a claim, by the name that results/papers/claims.yaml gives it."""
