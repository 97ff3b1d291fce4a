"""A simulated Metal on which the driver of shim/*.m runs without a Mac."""
