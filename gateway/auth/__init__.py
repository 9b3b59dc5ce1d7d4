"""Who is calling: what a request shows of itself, and what that may do."""
