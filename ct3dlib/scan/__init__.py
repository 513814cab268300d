"""One CT: a volume with its geometry, its file formats and its normalisation."""
