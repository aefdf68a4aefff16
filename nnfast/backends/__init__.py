"""The compute backends. Only ``nnfast.devices`` imports a concrete one, and only when it is asked for."""
