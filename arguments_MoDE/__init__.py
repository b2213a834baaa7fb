"""Settings of a run: dataclasses, the recipe reader, the command line, the recipes."""
