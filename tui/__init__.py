"""The live viewer: reads run folders, never the training process."""
