"""The specification, in NumPy: rules, stages, norms, codecs and random words."""
