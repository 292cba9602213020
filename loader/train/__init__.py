"""The training loader: DataLoader, its state and its statistics."""
