"""Studies of the spectral-mixture solver of differential equations."""
