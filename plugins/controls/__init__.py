"""Controls: treatments that tell a reaction apart from its side effects."""
