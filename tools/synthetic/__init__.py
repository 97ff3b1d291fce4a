"""Random models of real shapes: tensors, metadata, and what a rotation makes of both."""
