"""Operating points: a service with settings, an index, and a run over it; many of them side by side."""
