"""A language model here, decoded in batches that users share."""
