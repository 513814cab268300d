"""Whole volumes and whole data sets through a trained model."""
