"""Where commands take effect: on this machine, or on a Ray cluster."""
