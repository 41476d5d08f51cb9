"""The charts of an evaluation and of a comparison, each from the report's JSON alone."""
