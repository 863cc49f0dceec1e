"""Speed against what people use instead, measured side by side in one run."""
