"""Measures of models and data."""
