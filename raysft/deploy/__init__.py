"""A delivered model put to work: exported, on any number of images, behind HTTP."""
