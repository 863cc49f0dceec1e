"""MathTool-v0: a Gymnasium environment in which an LLM solves math with Python."""
