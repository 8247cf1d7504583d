"""The engines and the choice between them."""
