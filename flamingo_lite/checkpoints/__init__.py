"""Models on disk: whole directories, training checkpoints, and other people's formats."""
