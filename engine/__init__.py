"""The kernel of ctr and its services; imports neither plugins nor the viewer."""

if __name__ != "ctr.engine":
    raise ImportError(f"this folder is installed as ctr.engine; import that, not {__name__}")
