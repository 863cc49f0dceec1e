"""`python -m benchmarks` is the `mathenv` command."""

from benchmarks.start import main

main()
