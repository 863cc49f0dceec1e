"""Our suites and environment inside other evaluation frameworks."""
