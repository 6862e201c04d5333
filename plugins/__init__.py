"""The built-in plugins, one folder a family; they enter by the same entry points as a stranger's."""
