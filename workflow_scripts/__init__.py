"""One file a step: parse the command line, call the library once."""
