"""A run as one self-contained HTML page: numbers, curves, and every trajectory for reading."""
