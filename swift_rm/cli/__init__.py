"""The `swift-rm` command: one module per command, and `main`, which finds them. Nothing imports this room."""
