"""The version, for the package, its build and its configuration report."""

__version__ = "0.1.0"
