"""Studies of singular distributions."""
