"""How good is an explanation? Metrics of attributions."""
