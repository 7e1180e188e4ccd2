"""The control plane: processor, doors, scheduler, reconciler."""
