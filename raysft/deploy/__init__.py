"""A delivered model at work elsewhere: exported, over many images at once, behind an address."""
