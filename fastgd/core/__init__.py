"""What every optimizer is made of: groups, states, options, storage, steps."""
