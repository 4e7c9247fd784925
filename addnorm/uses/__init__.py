"""What one does with a trained model: answers to inputs, and how good they are."""
