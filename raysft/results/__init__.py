"""What a run leaves behind: its directory, the delivered model, scores and predictions."""
