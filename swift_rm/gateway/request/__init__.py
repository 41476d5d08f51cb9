"""What a request asks for: settings, limits, model names, errors, and the face of every backend."""
