"""Our suites, environment and trajectories inside other frameworks."""
