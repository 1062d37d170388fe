"""What ``python -m fastgd`` can do; each module is a command, or what one is made of."""
