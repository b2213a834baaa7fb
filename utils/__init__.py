"""Leaf helpers: nothing here imports from the packages above."""
