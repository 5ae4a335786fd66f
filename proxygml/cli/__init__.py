"""The commands. Each reads its options, calls the function of the same name, and says where the result lies."""
