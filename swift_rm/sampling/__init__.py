"""A language model's responses to questions, graded and kept in a file that can be resumed."""
