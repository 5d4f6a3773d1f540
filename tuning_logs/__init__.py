"""Records of tuned convolutions that ship with the project, one folder per processor family."""
