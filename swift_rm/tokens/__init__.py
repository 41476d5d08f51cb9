"""Text and messages to token ids and back: encoding, end tokens, regions, stop strings."""
