"""Limbeck distils large models into small ones, and proves what they kept."""

__version__ = "0.1.0"
