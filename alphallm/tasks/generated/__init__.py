"""The TFDS dataset `generated`."""
