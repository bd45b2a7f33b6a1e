"""`.tflite` files: running, inspecting and timing them."""
