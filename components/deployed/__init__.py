"""What is deployed: the pushed versions, the pointer to the current one, and the contract it keeps."""
