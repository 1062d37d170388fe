"""Arrays' memory: borrowed, checked before a kernel may touch it, and allocated."""
