"""Readers of raw data sets: raw root to catalog rows."""
