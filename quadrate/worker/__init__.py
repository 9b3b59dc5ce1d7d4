"""What the workers share above the runtime: their models and states, how requests are read, the model service, the process."""

from quadrate.worker.process import Worker, main

__all__ = ["Worker", "main"]
