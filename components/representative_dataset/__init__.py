"""Draws the calibration samples, and checks the training data on the way."""
