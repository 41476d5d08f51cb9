"""The form of a hybrid response: template, tags, forced modes."""
