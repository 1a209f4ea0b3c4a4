"""A delivered model at work: exported, on any number of images, over HTTP."""
