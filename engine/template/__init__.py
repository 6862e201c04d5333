"""The files that `ctr new-plugin` fills in; plain text, in which `$name` and the like are replaced."""
