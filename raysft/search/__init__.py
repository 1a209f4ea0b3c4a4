"""The search: configurations from a space, which trials train on, and the run that ties them to the
teams.
"""
