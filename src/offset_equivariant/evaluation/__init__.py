"""The saturation sweep, the same for every task."""
