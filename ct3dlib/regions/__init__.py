"""Region ids 0-20 on a volume's grid."""
