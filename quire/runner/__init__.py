"""Runner: one rank on one device. Turns a ScheduledBatch into tensors, runs the model, samples."""
