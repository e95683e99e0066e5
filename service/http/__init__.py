"""The HTTP contract: `app` is the FastAPI app, `envelope` wraps every answer, `body` reads requests."""
