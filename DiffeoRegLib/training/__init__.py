"""Training networks: images and pairs, synthetic pairs, the loop, checkpoints and validation."""
