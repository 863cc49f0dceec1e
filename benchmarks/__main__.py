"""`python -m benchmarks` is the `mathenv` command."""

from benchmarks.cli import main

main()
