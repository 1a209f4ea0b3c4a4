"""A delivered model at work: served over HTTP, exported, on whole collections of images."""
