"""Images and data sets: finding files, loading them, drawing the training images."""
