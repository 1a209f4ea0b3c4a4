"""The Ray that a run uses: this machine, or a cluster."""
