"""AI Hub: Qualcomm's cloud of real devices, through its own client (extra `hub`)."""
