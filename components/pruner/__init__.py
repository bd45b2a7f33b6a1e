"""Prunes a Keras model by weight magnitude."""
