"""Code shared by the adapters to other libraries: SciPy, scikit-learn, thinc, torch."""
