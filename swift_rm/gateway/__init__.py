"""The Best-of-N gateway: `swift-rm serve`, OpenAI's API in front of a model here or of a server elsewhere."""
