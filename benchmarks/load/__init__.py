"""Load generation: scheduled requests from separate processes, each one observed."""
