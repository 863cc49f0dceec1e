"""The training loop and what it needs: devices, checkpoints, schedule, LoRA, reference."""
