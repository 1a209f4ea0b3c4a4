"""Labelled images: where they come from, how they are stored as shards, how workers read them."""
