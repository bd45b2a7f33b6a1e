"""Clusters the weights of a Keras model to few shared values."""
