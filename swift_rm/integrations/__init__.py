"""Optional adapters to other libraries: import the one you need."""
