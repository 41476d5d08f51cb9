"""The gateway's process: settings read, port taken, served, reloaded and ended by signals."""
