"""Long mixed traffic with broken requests: responses and memory are checked."""
