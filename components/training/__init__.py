"""The one training loop, and what every step that trains does with its model."""
