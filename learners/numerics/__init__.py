"""From token ids to log-probabilities: batching, attention without padding, the head."""
