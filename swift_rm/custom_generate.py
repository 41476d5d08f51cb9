"""The path that users are told of; the code is in :mod:`swift_rm.decoding.custom_generate`."""

from swift_rm.decoding.custom_generate import BestOfNDecoding, BestOfNOutput

__all__ = ["BestOfNDecoding", "BestOfNOutput"]
