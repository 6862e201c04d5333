"""The built-in tasks, one file each; they enter by the same entry points as a stranger's."""
