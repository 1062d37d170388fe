"""Whose memory arrays are, what they must be before a kernel may touch it, and how it is made."""
