"""The web page: segment an image, click a region, and see why it got its name."""
