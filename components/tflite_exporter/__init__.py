"""Turns a Keras model into a checked TFLite model."""
