"""Fashion-MNIST: 28x28 pictures of clothes."""
