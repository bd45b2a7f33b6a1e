"""Compares all candidates with the float baseline, and selects the best that fits the budget."""
