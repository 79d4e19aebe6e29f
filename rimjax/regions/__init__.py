"""The costly half of flow 2: propose an image's regions, encode it, pool the features."""
