"""The speed and the memory of the kernels, on CPUs and on GPUs."""
