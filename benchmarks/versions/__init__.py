"""The core of the test suite with other versions of transformers and torch."""
