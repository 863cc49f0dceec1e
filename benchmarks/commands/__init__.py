"""The sub-commands of `mathenv`, one file each. `benchmarks.cli` lists them."""
