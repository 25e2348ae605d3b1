"""One file per paper; each registers its experiment when imported."""
