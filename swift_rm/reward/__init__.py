"""The reward model: configuration, head, calibration, identity, card, the paper's checkpoints."""
