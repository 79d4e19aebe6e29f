"""Published weights: where they come from, how they are downloaded and converted."""
