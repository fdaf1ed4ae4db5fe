"""Released weights, shipped as the package `hybridflow.checkpoints`; the model card is README.md."""
