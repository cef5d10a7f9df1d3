"""Label-efficient biomedical image segmentation in 2D and 3D, with every method under one protocol."""

__version__ = "0.1.0"
