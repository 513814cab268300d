"""Turn folders of CT scans into trained 3D models."""

__version__ = "0.1.0"
