"""What runs a model, for workers only: weights, graphs, sessions, batches, the queue before them. No gRPC in here."""
