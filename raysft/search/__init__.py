"""The search: configurations from a space, Ray Tune's decisions, and the run that ties them to the teams."""
