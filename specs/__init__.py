"""Shipped studies in YAML; `ctr specs` lists them."""
