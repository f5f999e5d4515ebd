"""Where models run: chips, and Qualcomm's NPU compiler on this machine."""
