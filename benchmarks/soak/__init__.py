"""Long mixed traffic with invalid requests: responses and memory are checked."""
