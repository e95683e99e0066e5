"""The benchmark harness: data sets, load and scores. It knows the service by HTTP only."""
