"""Hebbian learning: local rules that change a layer's weights from its own input and output, without labels."""
