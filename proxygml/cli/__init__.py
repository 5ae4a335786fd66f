"""The commands, one file each: it reads its options, calls the function of that name, says where the result lies."""
