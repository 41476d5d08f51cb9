"""What a rule is worth: curves over k, intervals over questions, AUROC, calibration, comparisons, probes."""
