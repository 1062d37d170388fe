"""What ranks do, case by case; `mpi_ranks.py` runs one."""
