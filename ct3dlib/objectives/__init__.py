"""What each training minimises: one module per training."""
