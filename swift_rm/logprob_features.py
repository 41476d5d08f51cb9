"""The path that users are told of; the code is in :mod:`swift_rm.reward.logprob_features`."""

from swift_rm.reward.logprob_features import VERSION, LogprobFeatures, feature_names, features_of, response_features

__all__ = ["VERSION", "LogprobFeatures", "feature_names", "features_of", "response_features"]
