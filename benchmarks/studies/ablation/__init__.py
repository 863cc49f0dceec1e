"""Every table of the paper again, on the embedded model (`mathenv ablate`)."""
