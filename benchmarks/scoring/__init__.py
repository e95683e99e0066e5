"""R@1 and mMP@5 of descriptors: relevance, measures and exact search."""
