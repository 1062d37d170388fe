"""What tests share: arrays, comparisons, optimizers to try, and programs that they start."""
