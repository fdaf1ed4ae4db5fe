"""Training: data, stages, and the loop that runs them. Imports the models; the models never import it."""
