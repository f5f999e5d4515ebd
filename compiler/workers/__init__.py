"""Jobs in processes of their own, as many at a time as memory holds; folders for one at a time."""
