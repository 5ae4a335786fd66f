"""The commands, one file each: it reads the options, calls the function of that name prints where the result is."""
