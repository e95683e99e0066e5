"""The HTTP contract: `app` is the FastAPI app, `envelope` the middleware around it, `body` reads requests."""
