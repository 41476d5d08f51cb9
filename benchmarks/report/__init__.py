"""The size of the report's page and how fast it opens."""
