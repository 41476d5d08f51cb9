"""That what is read of a model, here or in an inference engine, is what transformers has."""
