"""The parts of a training run: its files (`journal`, `records`, `checkpoint`), its ranks (`worker`), its tests (`evaluation`), its cluster."""
