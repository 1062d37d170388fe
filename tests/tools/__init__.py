"""Programs around the tests: mutation, fuzzing, sanitizers."""
