"""OpenCL on a device of this computer: PoCL, which ``make opencl-tools`` installs, or a GPU."""
