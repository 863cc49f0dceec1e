"""Benchmarks: a checkpoint in, numbers out; and the `mathenv` command. Read `runner` first."""
