"""Transfer learning on photos of flowers."""
