"""The command line of the recipe, one file for each verb."""
