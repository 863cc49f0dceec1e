"""Memory and time of a run before it is started, and what a machine lacks for it."""
