"""The package map: two packages from two source roots. Everything else is in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["swift_rm", "swift_rm.*"]), *find_packages("kernels")],
    package_dir={"swift_rm_kernels": "kernels/swift_rm_kernels"},
)
