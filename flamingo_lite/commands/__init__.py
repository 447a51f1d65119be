"""The commands, a module each: SUMMARY, add_arguments(parser), run(arguments). Heavy imports are in run."""
