"""Operating points: a service with settings, an index, and a replay; several of them compared."""
