"""Studies of functional Tucker decompositions."""
