"""The same work on a Ray cluster: workers draw classes and extract regions into the stores."""
