"""The path that users are told of; the code is in :mod:`swift_rm.integrations.blender_api`."""

from swift_rm.integrations.blender_api import best_of_n_generate, rank

__all__ = ["best_of_n_generate", "rank"]
