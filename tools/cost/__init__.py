"""What the kernels should cost: bytes, instructions and time on a chip, without the chip."""
