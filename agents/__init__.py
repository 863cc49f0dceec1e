"""Agents: observation in, action out. Read `base` first."""
