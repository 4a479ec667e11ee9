"""Data sets of images with tags, their augmentation, the order of draws and the Lightning data modules."""
