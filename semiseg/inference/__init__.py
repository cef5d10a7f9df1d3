"""From an image to class scores, in training and in use."""
